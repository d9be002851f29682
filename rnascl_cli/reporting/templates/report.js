"use strict";

function key(row, column, numeric) {
  const value = row.cells[column].dataset.v;
  if (value === undefined) return null;
  return numeric ? Number(value) : value;
}

function sortBy(header) {
  const table = header.closest("table");
  const column = header.cellIndex;
  const numeric = header.classList.contains("num");
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  const rows = Array.from(table.tBodies[0].rows);
  rows.sort((one, other) => {
    const a = key(one, column, numeric);
    const b = key(other, column, numeric);
    if (a === null || b === null) return (a === null) - (b === null); // nothing measured goes last, either way
    const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return ascending ? order : -order;
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

const dialog = document.getElementById("large");
const enlargers = Array.from(document.querySelectorAll(".enlarge"));
let shown = 0;

function show(index) {
  shown = (index + enlargers.length) % enlargers.length;
  const figure = enlargers[shown].closest("figure");
  dialog.querySelector("h3").textContent = figure.querySelector("h3").textContent;
  dialog.querySelector("p").textContent = figure.querySelector("figcaption").textContent;
  dialog.querySelector("div").replaceChildren(...Array.from(figure.querySelectorAll("img"), (image) => image.cloneNode()));
  if (!dialog.open) dialog.showModal();
}

enlargers.forEach((button, index) => button.addEventListener("click", () => show(index)));
dialog.querySelector(".before").addEventListener("click", () => show(shown - 1));
dialog.querySelector(".after").addEventListener("click", () => show(shown + 1));
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(shown - 1);
  if (event.key === "ArrowRight") show(shown + 1);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

// A link to a collapsed provenance entry opens it.
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}
addEventListener("hashchange", unfold);
unfold();

const themes = ["system", "light", "dark"];
const theme = document.querySelector(".theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme ?? themes[0]) + 1) % themes.length];
  if (next === themes[0]) delete root.dataset.theme;
  else root.dataset.theme = next;
  theme.textContent = `Theme: ${next}`;
});
