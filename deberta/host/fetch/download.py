"""One file over HTTP: resumed where the server allows it, retried after transient errors, and checked to be complete.

The bytes that have arrived are in `<name>.part`; `<name>.part.json` beside it holds their URL and version (ETag,
Last-Modified: RFC 9110 sections 8.8, 13.1.5 and 14), so that a later run asks for the rest of the same file only.

urllib3's Retry is not used: it repeats whole requests, and a transfer that breaks off has to go on from its last byte.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, Optional, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import msgspec
import requests
from urllib3.exceptions import HTTPError

from deberta.core import contract, files, schema
from deberta.core.errors import StageError
from deberta.core.progress import Progress
from deberta.host.fetch.sources import HEAD_BYTES

T = TypeVar("T")
MIB = 1 << 20
_CHUNK = 1 << 16
MOST_REDIRECTS = 10
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_AGENT = "deberta-ascend fetch"


@dataclass(frozen=True)
class DownloadSettings:
    """Bounds of one download; seconds and bytes."""

    attempts: int = 3  # failures in a row without new bytes, for each URL
    most_attempts: int = 30
    backoff: float = 1.0  # doubled after each failure
    connect: float = 10.0
    read: float = 60.0  # without a byte; twice that for the headers, and for each _CHUNK: the least rate
    most_bytes: int = 16 << 30  # for servers that give no length
    most_seconds: float = 24 * 3600.0  # of one answer
    sleep: Callable[[float], None] = time.sleep


SETTINGS = DownloadSettings()


class _Version(msgspec.Struct, frozen=True):
    """The sidecar of a part: what the answer to a range request must match."""

    url: str
    final_url: str = ""
    etag: str = ""
    modified: str = ""
    total: int = -1

    @property
    def validator(self) -> str:
        """If-Range takes a strong ETag or a date (RFC 9110 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class DownloadFailed(Exception):
    """A URL did not give the file. `transient`: trying again may help. `wrong`: it gave other data than expected."""

    def __init__(self, reason: str, *, transient: bool = False, wrong: bool = False) -> None:
        super().__init__(reason)
        self.transient, self.wrong = transient, wrong


def shown(url: str) -> str:
    """A URL for messages and records: without user, password, query and fragment, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def redirect_target(current: str, location: str) -> str:
    """The URL of a redirect. Raises DownloadFailed unless it is http or https, or if it leads from https to http."""
    target = urljoin(current, location)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https") or not urlsplit(target).hostname:
        raise DownloadFailed(f"redirected to {shown(target)}, which is not http or https: refused")
    if urlsplit(current).scheme == "https" and scheme == "http":
        raise DownloadFailed(f"redirected from https to {shown(target)}: refused")
    return target


def sidecar_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def discard(part: Path) -> None:
    """Remove a part and its sidecar."""
    part.unlink(missing_ok=True)
    sidecar_of(part).unlink(missing_ok=True)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise StageError unless `folder` (which exists) has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StageError(
            f"{what} needs {needed / MIB:.1f} MiB in {folder}, and {free / MIB:.1f} MiB are free. "
            "Free some space, then run the same command again"
        )


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """The part, opened for update and locked against other runs; removed if it stays empty."""
    # Unbuffered: after an error of a full disk, close() must not write the rest again.
    with open(part, "ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StageError(f"{part} is being downloaded by another run. Wait for it to end") from error
            # Some network file systems have no locks; the download goes on without one.
        try:
            yield file
        finally:
            if _size(file) == 0:
                discard(part)


@dataclass
class Transfer:
    """The download of one URL into `part`, where it stays. `about_bytes`: its size, for the disk check; 0 if unknown.

    `wrong_start` gives the reason why the first bytes are those of another kind of file, or None.
    """

    url: str
    part: Path
    name: str
    about_bytes: int
    wrong_start: Callable[[bytes], str | None]
    settings: DownloadSettings
    show: Callable[[str], None]

    def run(self) -> tuple[str, bool]:
        """Fill the part; returns the URL after redirects, without its query, and whether the part came in pieces.

        Raises DownloadFailed and StageError (disk), and then leaves the part for a later run.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.part) as self.file, requests.Session() as self.session:
            start = self._resumable()[1]
            longest, failures, attempts = start, 0, 0
            while True:
                try:
                    url = self._attempt()
                    self._check_start()
                    os.fsync(self.file.fileno())
                    return shown(url), start > 0 or attempts > 0
                except DownloadFailed as failure:
                    attempts += 1
                    # An attempt that brought new bytes resets the count of failures.
                    failures = 1 if _size(self.file) > longest + MIB else failures + 1
                    longest = max(longest, _size(self.file))
                    if failure.wrong:
                        self.file.truncate(0)
                    last = failures >= self.settings.attempts or attempts >= self.settings.most_attempts
                    if not failure.transient or last:
                        raise
                    wait = self.settings.backoff * 2 ** (failures - 1)
                    self.show(f"{self.name}: {failure}; trying again in {wait:g} s")
                    self.settings.sleep(wait)
                except OSError as error:
                    error.filename = error.filename or str(self.part)
                    raise

    def _attempt(self) -> str:
        """Ask for the missing bytes; returns the final URL once the part is complete. Raises DownloadFailed."""
        version, offset = self._resumable()
        if offset and offset == version.total:
            return version.final_url
        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
        if offset:
            headers.update({"Range": f"bytes={offset}-", "If-Range": version.validator})
        try:
            response, final_url = self._open(headers)
            with response:
                offset, total = self._position(response, offset)
                if offset != total:
                    etag, modified = (response.headers.get(name, "") for name in ("ETag", "Last-Modified"))
                    version = _Version(shown(self.url), shown(final_url), etag, modified, total)
                    files.write_text(sidecar_of(self.part), schema.text(version))
                    expected = total if total >= 0 else self.about_bytes
                    check_space(self.part.parent, expected - offset, self.name)
                    self._receive(response, offset, total, expected)
        except (requests.RequestException, HTTPError, ValueError) as error:  # ValueError: an answer that cannot be read
            transient = not isinstance(error, ValueError)  # an invalid URL, scheme or header stays so
            raise DownloadFailed(_reason(error, self.settings), transient=transient) from error
        return final_url

    def _resumable(self) -> tuple[_Version, int]:
        """The part's version and size. A part that may not belong to this URL's file is emptied: size 0."""
        url = shown(self.url)
        try:
            version = schema.read_json(sidecar_of(self.part), _Version)
        except (FileNotFoundError, ValueError):
            version = _Version(url="")
        size = _size(self.file)
        if size and version.url == url and version.validator and not 0 <= version.total < size:
            return version, size
        self.file.truncate(0)
        return _Version(url), 0

    def _check_start(self) -> None:
        """Raise DownloadFailed if the first bytes are those of another kind of file."""
        self.file.seek(0)
        reason = self.wrong_start(self.file.read(HEAD_BYTES))
        if reason:
            raise DownloadFailed(reason, wrong=True)

    def _open(self, headers: dict[str, str]) -> tuple[requests.Response, str]:
        """The response after redirects, which follow our own rules, and its URL; the body is not read yet."""
        url, timeout = self.url, (self.settings.connect, self.settings.read)
        for _ in range(MOST_REDIRECTS + 1):
            request = functools.partial(self.session.get, url, headers=headers, stream=True, timeout=timeout)
            response = within(sum(timeout) + self.settings.read, functools.partial(request, allow_redirects=False))
            location = self.session.get_redirect_target(response)
            if location is None:
                return response, url
            response.close()
            url = redirect_target(url, location)
        raise DownloadFailed(f"more than {MOST_REDIRECTS} redirects, the last to {shown(url)}")

    def _position(self, response: requests.Response, offset: int) -> tuple[int, int]:
        """The offset of the body and the file's size or -1; cuts the part to fit. Raises DownloadFailed."""
        status = response.status_code
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise DownloadFailed(f"the server sent it {encoding}-encoded, which was not asked for")
        if status == 200:
            self.file.truncate(0)
            length = response.headers.get("Content-Length")
            return 0, -1 if length is None else contract.whole(length)
        content_range = response.headers.get("Content-Range", "")
        if status == 206 and offset:
            match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", content_range)
            if match and int(match[1]) == offset and match[3] in ("*", str(int(match[2]) + 1)):
                return offset, int(match[2]) + 1
            reason = f"asked from byte {offset}, got {content_range or 'no range'}"
        elif status == 416 and offset:
            if content_range == f"bytes */{offset}":
                return offset, offset
            reason = "the file at the server is shorter than what is here"
        else:
            raise DownloadFailed(f"HTTP {status} {response.reason or ''}".rstrip(), transient=status in _TRANSIENT)
        self.file.truncate(0)
        raise DownloadFailed(f"{reason}; starting over", transient=True)

    def _receive(self, response: requests.Response, offset: int, total: int, expected: int) -> None:
        """Append the body to the part. Raises DownloadFailed if it ends early or starts like another kind of file."""
        name = self.name
        what = f"fetch {name}" + (f" from {offset // MIB} MiB on" if offset else "")
        progress = Progress(what, -(-(expected - offset) // MIB), "MiB") if expected > offset else None
        if offset:
            self.show(f"{name}: going on after {offset / MIB:.1f} MiB")
        received, checked, started = offset, offset >= HEAD_BYTES, time.monotonic()
        shown_at = started
        chunks = response.iter_content(_CHUNK)
        while chunk := within(2 * self.settings.read, lambda: next(chunks, b""), response):
            if time.monotonic() - started > self.settings.most_seconds:
                raise DownloadFailed(f"took more than {self.settings.most_seconds:g} s: stopped")
            unwritten = memoryview(chunk)
            while unwritten:
                unwritten = unwritten[self.file.write(unwritten) :]
            received += len(chunk)
            if not checked and received >= HEAD_BYTES:
                self._check_start()
                checked = True
            if received > self.settings.most_bytes:
                raise DownloadFailed(f"more than {self.settings.most_bytes} bytes: stopped", wrong=True)
            if progress:
                rate = (received - offset) / MIB / max(1e-3, time.monotonic() - started)
                progress.update(min((received - offset) // MIB, progress.total - 1), f"{rate:.1f} MiB/s")
            elif time.monotonic() - shown_at > 10:
                shown_at = time.monotonic()
                self.show(f"{name}: {received // MIB} MiB so far, the server does not say of how many")
        if total >= 0 and received != total:
            raise DownloadFailed(f"the connection ended after {received} of {total} bytes", transient=True)
        if progress:
            progress.update(progress.total)


def within(seconds: float, call: Callable[[], T], response: Optional[requests.Response] = None) -> T:
    """What a call returns or raises; DownloadFailed if it takes longer: `response` is then cut off.

    A socket's timeout begins anew with every byte, so that it does not bound a server that sends one now and then.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        if response is not None:
            with contextlib.suppress(OSError, ValueError):  # it has no socket any more
                response.raw.shutdown()  # to close it would wait for the reader
        raise DownloadFailed(f"it came slower than {_CHUNK} bytes in {seconds:g} s", transient=True)
    return results[0]


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _reason(error: Exception, settings: DownloadSettings) -> str:
    """The innermost of the nested causes that requests reports, in a few words."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {settings.connect:g} s"
    if isinstance(error, requests.ReadTimeout) or "Read timed out" in str(error):
        return f"no data for {settings.read:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection ended early"
    inner: object = error.args[0] if error.args else error
    inner = getattr(inner, "reason", inner)
    if isinstance(inner, Exception) and len(inner.args) > 1 and isinstance(inner.args[0], str):
        inner = inner.args[0]  # ("Connection aborted.", its cause)
    kind = "the proxy: " if isinstance(error, requests.exceptions.ProxyError) else ""
    return kind + (str(inner).rpartition(": ")[2] or type(error).__name__)
