"""A web server on this machine that serves files as badly as it is told to."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

ETAG = '"one"'
STALL_AT = 2**17  # bytes sent before a stall or a break


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the next of the answers that stand for the path; the last one stands for ever."""

    server: Server

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        self.server.seen.append(Seen(self.command, self.path, dict(self.headers)))
        answers = self.server.answers.get(path, [status(404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def send(
        self, code: int, body: bytes = b"", *, length: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole answer, or one that announces another length than it has; ``_`` in a header's name is ``-``."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.wfile.flush()
        self.close_connection = True


Answer = Callable[[Handler], None]


class Seen(NamedTuple):
    """A request."""

    method: str
    path: str
    headers: dict[str, str]


class Server(http.server.ThreadingHTTPServer):
    """The server's state."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.seen: list[Seen] = []
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: the client hangs up on us in half of these tests."""


@dataclass
class FileServer:
    """What a test sees of it."""

    server: Server = field(default_factory=Server)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def serve(self, path: str, *answers: Answer) -> str:
        """Answer requests for ``path``, in this order; the last answer stands for all that follow."""
        self.server.answers[path] = list(answers)
        return self.url(path)

    @property
    def seen(self) -> list[Seen]:
        return self.server.seen

    @property
    def ranges(self) -> list[str | None]:
        """The Range of each request for a body."""
        return [seen.headers.get("Range") for seen in self.seen if seen.method == "GET"]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server that knows no file yet."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = FileServer()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.server.closing.set()
    served.server.shutdown()
    served.server.server_close()
    thread.join()


def whole(data: bytes, *, ranges: bool = True, etag: str | None = ETAG, **headers: str) -> Answer:
    """Serve the file; with ``ranges`` the part that is asked for, where If-Range names this file."""

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        tags = headers if etag is None else {**headers, "ETag": etag}
        if asked is None or not ranges or handler.headers.get("If-Range", etag) != etag:
            handler.send(200, data, headers=tags)
        elif (start := int(asked[1])) >= len(data):
            handler.send(416, headers={"Content_Range": f"bytes */{len(data)}", **tags})
        else:
            rest = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}", **tags}
            handler.send(206, data[start:], headers=rest)

    return answer


def broken_off(data: bytes, at: int = STALL_AT, *, etag: str | None = ETAG) -> Answer:
    """Announce the file, send its beginning, hang up."""

    def answer(handler: Handler) -> None:
        handler.send(200, data[:at], length=len(data), headers={} if etag is None else {"ETag": etag})

    return answer


def stalled(data: bytes, at: int = STALL_AT, *, then: Callable[[], None] | None = None) -> Answer:
    """Announce the file, send its beginning, and then nothing; nothing at all where ``at`` is 0."""

    def answer(handler: Handler) -> None:
        if at:
            handler.send(200, data[:at], length=len(data), headers={"ETag": ETAG})
        if then is not None:
            then()
        server = handler.server
        server.closing.wait(10)

    return answer


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer with a status, and perhaps a page."""
    return lambda handler: handler.send(code, body, headers=headers)


def redirect(to: str) -> Answer:
    """Send the client elsewhere."""
    return status(302, Location=to)


def page(title: str, body: str = "", *, content_type: str = "text/html; charset=utf-8") -> Answer:
    """Answer 200 with a web page."""
    text = f"\n<!DOCTYPE html><html><head><title>{title}</title></head><body>{body}</body></html>"
    return status(200, text.encode(), Content_Type=content_type)
