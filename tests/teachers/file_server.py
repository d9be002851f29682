"""A web server on this machine that stands for Google Drive, the Hugging Face Hub and every other host."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from rnascl_cli.teachers import download


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the next of the path's answers; the last one is repeated."""

    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {self.path}")
        answers = self.server.answers.get(path, [status(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def send(
        self, code: int, body: bytes = b"", *, length: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send an answer, which may announce another length than it has; ``_`` in a header's name is ``-``."""
        self.send_response(code)
        for name, value in {"Content_Type": "application/octet-stream", **(headers or {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        self.close_connection = True


Answer = Callable[[Handler], None]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []


@dataclass
class FileServer:
    """The server as a test uses it."""

    server: Server = field(default_factory=Server)

    @property
    def requests(self) -> list[str]:
        return self.server.requests

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def serve(self, path: str, *answers: Answer) -> str:
        """Answer requests for ``path`` in this order; the last answer is repeated."""
        self.server.answers[path] = list(answers)
        return self.url(path)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server to which requests for Google Drive and the Hub are redirected; without pauses between attempts."""
    served = FileServer()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", served.url(""))
    monkeypatch.setattr(download, "PAUSE", 0.01)
    session = pytest.importorskip("requests").Session
    request = session.request

    def redirected(self: object, method: str, url: str, **options: object) -> object:
        return request(self, method, url.replace("https://drive.google.com", served.url("")), **options)

    monkeypatch.setattr(session, "request", redirected)
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.stop()
    thread.join()


def whole(data: bytes, **headers: str) -> Answer:
    """Send a file."""
    headers = {"Content_Disposition": 'attachment; filename="x"', **headers}
    return lambda handler: handler.send(200, data, headers=headers)


def on_hub(data: bytes, sha256: str) -> Answer:
    """Send a file as the Hugging Face Hub does."""
    return whole(data, ETag=f'"{sha256}"', X_Repo_Commit="c" * 40)


def truncated(data: bytes) -> Answer:
    """Announce a file, send half of it, and hang up."""
    return lambda handler: handler.send(200, data[: len(data) // 2], length=len(data))


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer with a status."""
    return lambda handler: handler.send(code, body, headers=headers)


def page(title: str, body: str = "") -> Answer:
    """Answer 200 with a web page."""
    text = f"\n<!DOCTYPE html><html><head><title>{title}</title></head><body>\n{body}\n</body></html>"
    return status(200, text.encode(), Content_Type="text/html; charset=utf-8")


def scan_page(action: str) -> Answer:
    """The page that Google Drive shows before a large file."""
    fields = {"id": "1-Z", "confirm": "t", "uuid": "u-1"}
    inputs = "".join(f'<input type="hidden" name="{name}" value="{value}">' for name, value in fields.items())
    return page("Virus scan warning", f'<form id="download-form" action="{action}" method="get">{inputs}</form>')
