"""What registries say of a manifest list, from a registry on the loopback that wants a token and may lie."""

from __future__ import annotations

import hashlib
import http.server
import json
from collections.abc import Iterator
from typing import Any

import pytest

from deberta.core.errors import MissingError
from deberta.host.images import registry
from tests.image_helpers import serving

DIGESTS = {name: f"sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("amd64", "arm64", "unknown")}


def manifest_list(*architectures: str) -> bytes:
    entries = [
        {"digest": DIGESTS.get(name, DIGESTS["unknown"]), "size": 1, "platform": {"os": "linux", "architecture": name}}
        for name in architectures
    ]
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


class _Registry(http.server.BaseHTTPRequestHandler):
    """`contents`: digest to manifest. A manifest is given to who brings the token."""

    contents: dict[str, bytes]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/token":
            assert query == "service=here&scope=repository%3Apython%3Apull"
            return self._answer(200, b'{"token": "let-me-in"}')
        if self.headers.get("Authorization") != "Bearer let-me-in":
            return self._answer(401, b"{}")
        name, digest = path.split("/manifests/")
        known = name == "/v2/python" and digest in self.contents
        return self._answer(200, self.contents[digest]) if known else self._answer(404, b"{}")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        realm = f"http://127.0.0.1:{self.server.server_port}/token"  # type: ignore[attr-defined]
        self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="here",scope="anything"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The image's name, and the manifests by digest, which tests fill."""
    contents: dict[str, bytes] = {}
    with serving(type("Served", (_Registry,), {"contents": contents})) as address:
        yield f"{address}/python:3.11", contents


def add(contents: dict[str, bytes], content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    contents[digest] = content
    return digest


def test_digests_by_platform(served: tuple[str, dict[str, bytes]]) -> None:
    name, contents = served
    digest = add(contents, manifest_list("amd64", "arm64", "riscv64"))
    assert registry.platforms(name, digest) == {
        "linux/amd64": DIGESTS["amd64"], "linux/arm64": DIGESTS["arm64"], "linux/riscv64": DIGESTS["unknown"],
    }  # fmt: skip
    assert registry.platforms(name, add(contents, b'{"config": {}, "layers": []}')) is None


def test_what_is_not_that_list_is_no_answer(served: tuple[str, dict[str, bytes]]) -> None:
    name, contents = served
    digest = add(contents, manifest_list("amd64"))
    contents[digest] = manifest_list("arm64")
    with pytest.raises(MissingError, match=r"gave something else for python@sha256:"):
        registry.platforms(name, digest)
    for content in (b"<html>", b'{"manifests": [{"digest": "latest"}]}', b'{"manifests": 1}'):
        with pytest.raises(MissingError, match="is no manifest: "):
            registry.platforms(name, add(contents, content))
    with pytest.raises(MissingError, match="answers 404"):
        registry.platforms(name, DIGESTS["amd64"])
    with pytest.raises(MissingError, match=f"larger than {registry.MAXIMUM_BYTES} bytes"):
        registry.platforms(name, add(contents, b" " * (registry.MAXIMUM_BYTES + 1)))
    with pytest.raises(MissingError, match=r"does not answer at http://127\.0\.0\.1:1/"):
        registry.platforms("127.0.0.1:1/python", digest)
