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
for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    dialog.querySelector("div").replaceChildren(button.querySelector("picture").cloneNode(true));
    dialog.showModal();
  });
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
