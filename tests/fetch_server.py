"""A web server on the loopback interface that serves files in the ways that go wrong."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Optional


@dataclass
class Page:
    """One path's behaviour. `statuses` and `cuts` are used up, one per request, before the normal answer."""

    body: bytes = b""
    ranges: bool = True
    etag: str = '"v1"'
    modified: str = ""
    length: bool = True  # False: no Content-Length, the end of the connection ends the file
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)  # close the connection after so many bytes of the body
    location: str = ""  # redirect to this
    headers: dict[str, str] = field(default_factory=dict)
    wrong_range: bool = False  # answer a range request with another range
    pause: float = 0.0  # seconds before the body's second half


@dataclass
class Seen:
    path: str
    range: Optional[str]
    if_range: Optional[str]


class Server:
    """`pages` may be changed between requests; `seen` holds the requests in order."""

    def __init__(self, port: int) -> None:
        self.pages: dict[str, Page] = {}
        self.seen: list[Seen] = []
        self.base = f"http://127.0.0.1:{port}"

    def url(self, path: str) -> str:
        return self.base + path

    def ranges(self) -> list[Optional[str]]:
        return [request.range for request in self.seen]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.seen.append(Seen(self.path, self.headers["Range"], self.headers["If-Range"]))
            self.close_connection = True
            page = server.pages.get(self.path.partition("?")[0])
            status = page.statuses.pop(0) if page and page.statuses else 200 if page else 404
            if page is None or status != 200:
                self._send(status, {}, b"<html>an error page</html>")
            elif page.location:
                self._send(302, {"Location": page.location}, b"")
            else:
                self._file(page)

        def _file(self, page: Page) -> None:
            headers = {"ETag": page.etag, "Last-Modified": page.modified, **page.headers}
            match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            same = self.headers["If-Range"] in (None, page.etag, page.modified)
            if not (match and page.ranges and same):
                self._send(200, headers, page.body, page)
                return
            start, size = int(match[1]), len(page.body)
            if start >= size:
                self._send(416, {"Content-Range": f"bytes */{size}"}, b"")
                return
            start -= 1 if page.wrong_range else 0
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            self._send(206, headers, page.body[start:], page)

        def _send(self, status: int, headers: dict[str, str], body: bytes, page: Optional[Page] = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            if page is None or page.length:
                self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            cut = page.cuts.pop(0) if page and page.cuts else len(body)
            with contextlib.suppress(ConnectionError):
                half = cut // 2 if page and page.pause else cut
                self.wfile.write(body[:half])
                if half < cut:
                    time.sleep(page.pause if page else 0)
                    self.wfile.write(body[half:cut])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        server = Server(http_server.server_port)
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http_server.shutdown()
            thread.join()
