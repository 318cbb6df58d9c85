"""What a registry says of an image by its own API: the digest of the image for each platform.

The engine says the digest of a tag's manifest list and does not say what is in it. A list is taken only if its bytes
have that digest, so that nobody between the registry and here decides what is recorded.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from typing import Dict, List, Mapping, Optional, Tuple
from urllib.parse import urlsplit

import docker.auth
import docker.errors
import msgspec
import requests

from deberta.core import schema
from deberta.core.errors import MissingError, one_line
from deberta.host.engine.address import LOOPBACK
from deberta.host.images import pins
from deberta.host.images.pins import Digest

MAXIMUM_BYTES = 4 << 20  # of a manifest: what registries take at most
SECONDS = 60.0  # for a whole answer
_TYPES = (
    "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json",
)  # fmt: skip


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""


class _Entry(msgspec.Struct):
    digest: Digest
    platform: Optional[_Platform] = None


class _Manifest(msgspec.Struct):
    """A list of manifests, or the manifest of one image, which has none in it."""

    manifests: Optional[List[_Entry]] = None


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def platforms(image: str, digest: str) -> Optional[Dict[str, str]]:
    """Platform (linux/arm64) to the digest of its image in the manifest list `digest` of NAME:TAG.

    None if it is no list: the image is of one platform, and `digest` is its own. Raises MissingError (no answer, or
    another one than the digest says).
    """
    registry, name = docker.auth.resolve_repository_name(pins.without_tag(image))
    hub = registry == docker.auth.INDEX_NAME
    address = f"index.{registry}" if hub else registry
    name = f"library/{name}" if hub and "/" not in name else name
    scheme = "http" if urlsplit(f"//{address}").hostname in LOOPBACK else "https"  # as engines do
    content = _get(f"{scheme}://{address}/v2/{name}/manifests/{digest}", registry, name)
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise MissingError(f"{address} gave something else for {name}@{digest}: its SHA-256 is another")
    try:
        manifests = schema.decode(content, _Manifest).manifests
    except ValueError as error:
        raise MissingError(f"{address}: {name}@{digest} is no manifest: {one_line(str(error))}") from None
    if manifests is None:
        return None
    by_platform: Dict[str, List[str]] = {}
    for entry in manifests:
        if entry.platform:
            by_platform.setdefault(f"{entry.platform.os}/{entry.platform.architecture}", []).append(entry.digest)
    return {platform: digests[0] for platform, digests in by_platform.items() if len(set(digests)) == 1}


def _get(url: str, registry: str, name: str) -> bytes:
    try:
        status, headers, content = _ask(url, {"Accept": ", ".join(_TYPES)}, None)
        if status == 401:
            authorization = _authorize(headers.get("WWW-Authenticate", ""), registry, name)
            status, headers, content = _ask(url, {"Accept": ", ".join(_TYPES), "Authorization": authorization}, None)
    except (requests.RequestException, docker.errors.DockerException, ValueError) as error:
        raise MissingError(f"the registry does not answer at {url}: {one_line(str(error))[:300]}") from None
    if status != 200:
        raise MissingError(f"the registry answers {status} at {url}")
    return content


def _authorize(challenge: str, registry: str, name: str) -> str:
    """The header that a challenge asks for, with what `docker login` has kept. Raises ValueError."""
    kept = docker.auth.load_config().resolve_authconfig(registry) or {}
    user = (kept["Username"], kept["Password"]) if kept.get("Username") and kept.get("Password") else None
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = urlsplit(fields.get("realm", ""))
    if challenge.lower().startswith("basic ") and user:
        return f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"
    if not challenge.lower().startswith("bearer ") or (realm.scheme != "https" and realm.hostname not in LOOPBACK):
        raise ValueError("it wants a login that is not known. Run: docker login")
    query = {"service": fields.get("service", ""), "scope": f"repository:{name}:pull"}
    status, _, content = _ask(realm.geturl(), {}, user, query)
    if status != 200:
        raise ValueError(f"{realm.hostname} gives no token ({status}). Run: docker login")
    token = schema.decode(content, _Token)
    return f"Bearer {token.token or token.access_token}"


def _ask(
    url: str, headers: Mapping[str, str], user: Optional[Tuple[str, str]], query: Optional[Mapping[str, str]] = None
) -> Tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body, the latter and the time for it bounded. Raises ValueError and what requests raises."""
    give_up = time.monotonic() + SECONDS
    with requests.get(url, headers=dict(headers), auth=user, params=query, stream=True, timeout=20) as answer:
        content = b""
        for chunk in answer.iter_content(1 << 16):
            content += chunk
            if len(content) > MAXIMUM_BYTES or time.monotonic() > give_up:
                raise ValueError(
                    f"the answer is larger than {MAXIMUM_BYTES} bytes, or takes longer than {SECONDS:.0f} s"
                )
        return answer.status_code, answer.headers, content
