"""One file over HTTP: resumed where the server allows it, retried where it may help, never whole when it is not.

What has arrived is in `<name>.part`; `<name>.part.json` beside it says where it came from and which version it is
(ETag, Last-Modified: RFC 9110 sections 8.8, 13.1.5 and 14), so that a later run asks
for the rest of the same file only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Callable, Optional
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests

from deberta.core import files
from deberta.core.errors import StageError
from deberta.core.progress import Progress
from deberta.host.fetch.sources import HEAD_BYTES

MIB = 1 << 20
_CHUNK = 1 << 16
_REDIRECTS = 10
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_AGENT = "deberta-ascend fetch"


@dataclass(frozen=True)
class DownloadSettings:
    """Bounds of one download; seconds and bytes."""

    attempts: int = 3  # failures in a row without new bytes, for each URL
    most_attempts: int = 30
    backoff: float = 1.0  # doubled after each failure
    connect: float = 10.0
    read: float = 60.0
    most_bytes: int = 16 << 30  # a server that names no length cannot fill the disk for ever
    sleep: Callable[[float], None] = time.sleep


SETTINGS = DownloadSettings()


@dataclass(frozen=True)
class DownloadRequest:
    """What to get, and how to tell early that something else came."""

    url: str
    part: Path
    name: str
    about_bytes: int  # 0 if unknown
    wrong_start: Callable[[bytes], Optional[str]]


@dataclass(frozen=True)
class Downloaded:
    """A file that arrived whole, as far as HTTP can tell; it is still in `part`."""

    url: str  # where redirects ended, without its query
    size: int
    resumed: bool


@dataclass(frozen=True)
class _Version:
    """The sidecar of a part: what a range request must match."""

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
    """A URL did not give the file. `wrong`: it gave something else, which is not a network's fault."""

    def __init__(self, reason: str, *, again: bool = False, wrong: bool = False) -> None:
        super().__init__(reason)
        self.again, self.wrong = again, wrong


def shown(url: str) -> str:
    """A URL for messages and records: without user, password, query and fragment, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def redirect_target(current: str, location: str) -> str:
    """Where a redirect leads. Raises DownloadFailed unless it is http or https, and never from https to http."""
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


def download(request: DownloadRequest, settings: DownloadSettings, out: Callable[[str], None]) -> Downloaded:
    """Fill `request.part`. Raises DownloadFailed, StageError (disk), and leaves the part for a later run then."""
    request.part.parent.mkdir(parents=True, exist_ok=True)
    with _locked(request.part) as file, requests.Session() as session:
        start = _resumable(request, file)[1]
        furthest, failures, tries = start, 0, 0
        while True:
            try:
                final_url = _attempt(session, request, file, settings, out)
                _check_start(request, file)
                os.fsync(file.fileno())
                return Downloaded(shown(final_url), _size(file), start > 0 or tries > 0)
            except DownloadFailed as failure:
                tries += 1
                # New bytes, kept for the next attempt, are a reason to go on; the same bytes again are not.
                failures = 1 if _size(file) > furthest + MIB else failures + 1
                furthest = max(furthest, _size(file))
                if failure.wrong:
                    file.truncate(0)
                if not failure.again or failures >= settings.attempts or tries >= settings.most_attempts:
                    raise
                wait = settings.backoff * 2 ** (failures - 1)
                out(f"{request.name}: {failure}; trying again in {wait:g} s")
                settings.sleep(wait)
            except OSError as error:
                error.filename = error.filename or str(request.part)
                raise


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """The part, opened for update; two runs never write one file."""
    # Unbuffered: what did not fit on a full disk must not be written again by close().
    with open(part, "ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StageError(f"{part} is being downloaded by another run. Wait for it to end") from error
            # Some network file systems have no locks; two runs at once are unlikely enough there.
        try:
            yield file
        finally:
            if _size(file) == 0:
                discard(part)


def _attempt(
    session: requests.Session,
    request: DownloadRequest,
    file: IO[bytes],
    settings: DownloadSettings,
    out: Callable[[str], None],
) -> str:
    """One request; returns the final URL once the part is whole."""
    version, offset = _resumable(request, file)
    if offset and offset == version.total:
        return version.final_url
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if offset:
        headers.update({"Range": f"bytes={offset}-", "If-Range": version.validator})
    try:
        response, final_url = _open(session, request.url, headers, settings)
        with response:
            offset, total = _position(response, file, offset)
            if offset == total:
                return final_url
            _remember(request, response, final_url, total)
            known = total if total >= 0 else request.about_bytes
            check_space(request.part.parent, known - offset, request.name)
            _receive(response, request, file, offset, total, settings, out)
    except requests.RequestException as error:
        raise DownloadFailed(_reason(error, settings), again=not isinstance(error, _HOPELESS)) from error
    return final_url


def _open(
    session: requests.Session, url: str, headers: dict[str, str], settings: DownloadSettings
) -> tuple[requests.Response, str]:
    """Follow redirects by our own rules; the response's body is not read yet."""
    for _ in range(_REDIRECTS + 1):
        response = session.get(
            url, headers=headers, stream=True, allow_redirects=False, timeout=(settings.connect, settings.read)
        )
        location = session.get_redirect_target(response)
        if location is None:
            return response, url
        response.close()
        url = redirect_target(url, location)
    raise DownloadFailed(f"more than {_REDIRECTS} redirects, the last to {shown(url)}")


def _position(response: requests.Response, file: IO[bytes], offset: int) -> tuple[int, int]:
    """Where the body's first byte belongs, and the file's size or -1; cuts the part to fit. Raises DownloadFailed."""
    status = response.status_code
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise DownloadFailed(f"the server sent it {encoding}-encoded, which was not asked for")
    if status == 200:
        file.truncate(0)
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else -1
    content_range = response.headers.get("Content-Range", "")
    if status == 206 and offset:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
        if match and int(match[1]) == offset:
            total = -1 if match[3] == "*" else int(match[3])
            if total in (-1, int(match[2]) + 1):
                return offset, int(match[2]) + 1
        file.truncate(0)
        raise DownloadFailed(f"asked from byte {offset}, got {content_range or 'no range'}; starting over", again=True)
    if status == 416 and offset:
        if content_range == f"bytes */{offset}":
            return offset, offset
        file.truncate(0)
        raise DownloadFailed("the file at the server is shorter than what is here; starting over", again=True)
    raise DownloadFailed(f"HTTP {status} {response.reason or ''}".rstrip(), again=status in _TRANSIENT)


def _receive(
    response: requests.Response,
    request: DownloadRequest,
    file: IO[bytes],
    offset: int,
    total: int,
    settings: DownloadSettings,
    out: Callable[[str], None],
) -> None:
    """Append the body to the part. Raises DownloadFailed if it ends early or starts like another kind of file."""
    rest = (total if total >= 0 else request.about_bytes) - offset
    what = f"fetch {request.name}" + (f" from {offset // MIB} MiB on" if offset else "")
    progress = Progress(what, -(-rest // MIB), "MiB") if rest > 0 else None
    if offset:
        out(f"{request.name}: going on after {offset / MIB:.1f} MiB")
    done, checked, started = offset, offset >= HEAD_BYTES, time.monotonic()
    said = started
    for chunk in response.iter_content(_CHUNK):
        rest_of_chunk = memoryview(chunk)
        while rest_of_chunk:
            rest_of_chunk = rest_of_chunk[file.write(rest_of_chunk) :]
        done += len(chunk)
        if not checked and done >= HEAD_BYTES:
            _check_start(request, file)
            checked = True
        if done > settings.most_bytes:
            raise DownloadFailed(f"more than {settings.most_bytes} bytes: stopped", wrong=True)
        if progress:
            rate = (done - offset) / MIB / max(1e-3, time.monotonic() - started)
            progress.update(min((done - offset) // MIB, progress.total - 1), f"{rate:.1f} MiB/s")
        elif time.monotonic() - said > 10:
            said = time.monotonic()
            out(f"{request.name}: {done // MIB} MiB so far, the server does not say of how many")
    if total >= 0 and done != total:
        raise DownloadFailed(f"the connection ended after {done} of {total} bytes", again=True)
    if progress:
        progress.update(progress.total)


def _check_start(request: DownloadRequest, file: IO[bytes]) -> None:
    file.seek(0)
    problem = request.wrong_start(file.read(HEAD_BYTES))
    if problem:
        raise DownloadFailed(problem, wrong=True)


def _remember(request: DownloadRequest, response: requests.Response, final_url: str, total: int) -> None:
    headers = response.headers
    version = _Version(
        shown(request.url), shown(final_url), headers.get("ETag", ""), headers.get("Last-Modified", ""), total
    )
    files.write_text(sidecar_of(request.part), json.dumps(asdict(version), indent=2) + "\n")


def _resumable(request: DownloadRequest, file: IO[bytes]) -> tuple[_Version, int]:
    """The part's version and size; size 0, the part emptied, if it is not known to be a piece of this URL's file."""
    try:
        found = json.loads(sidecar_of(request.part).read_text(encoding="utf-8"))
        version = _Version(
            str(found["url"]), str(found["final_url"]), str(found["etag"]), str(found["modified"]), int(found["total"])
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        version = _Version(url="")
    size = _size(file)
    if size and version.url == shown(request.url) and version.validator and not 0 <= version.total < size:
        return version, size
    file.truncate(0)
    return _Version(shown(request.url)), 0


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


_HOPELESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
    requests.exceptions.MissingSchema,
)


def _reason(error: requests.RequestException, settings: DownloadSettings) -> str:
    """requests nests its causes; the innermost says it in a few words."""
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
