"""The bases of stage images on a real engine: from its own images, and by digest from a registry."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.request
from collections.abc import Mapping

import pytest

from deberta.core.errors import ConfigError, DataError, MissingError, StageError
from deberta.host.images import build as building
from deberta.host.images import definition, pins
from deberta.host.images import registry as registries
from deberta.host.images.definition import BuildSettings
from tests.container.bases import BOOKWORM
from tests.container.workshop import Workshop
from tests.image_helpers import ARCH

pytestmark = pytest.mark.container


def test_a_base_is_one_that_the_engine_has_and_for_this_machine(shop: Workshop) -> None:
    with pytest.raises(MissingError, match="docker pull deberta-ascend-test/absent"):
        building.resolve_base(shop.client, "deberta-ascend-test/absent")
    pins.set_base(shop.project, "export", f"sha256:{'0' * 64}")
    with pytest.raises(MissingError, match="is not on this engine any more"):
        shop.build("export")
    pins.set_base(shop.project, "export", building.resolve_base(shop.client, BOOKWORM))
    other = definition.plan(shop.project, pins.load(shop.project), "export", "aarch64")
    with pytest.raises(ConfigError, match="is for amd64, and arm64 is needed"):
        building.build(shop.client, other, shop.settings, shop.log, shop.said.append)


def test_digests_come_from_the_registry_and_bases_by_digest(shop: Workshop, registry: str) -> None:
    name = f"{registry}/python"
    number, digest = push_tiny(shop, name, "3.11")
    assert building.resolve(shop.client, f"{name}:3.11") == digest
    with pytest.raises(MissingError, match=rf"did not give the digest of {name}:absent"):
        building.resolve(shop.client, f"{name}:absent")

    pins.set_base(shop.project, "export", f"{name}:3.11@{digest}")
    with pytest.raises(MissingError, match=r"images\.offline is set"):
        shop.build("export")
    # Pulled, which is what is shown of it: the base is empty, and no container can start in it.
    with pytest.raises(StageError, match="unable to find user root"):
        shop.build("export", BuildSettings(shop.settings.wheelhouse, network="none"))
    assert shop.said[0] == f"pulling {name}:3.11@{digest}"
    assert shop.client.images.get(f"{name}@{digest}").id == number
    shop.client.images.remove(f"{name}@{digest}")

    pins.set_base(shop.project, "export", f"{name}@sha256:{'0' * 64}")
    with pytest.raises(MissingError, match=r"could not be pulled: .* invoke images --base export=IMAGE"):
        shop.build("export", BuildSettings())


def push_tiny(shop: Workshop, name: str, tag: str) -> tuple[str, str]:
    """The id of an image with one file, and the digest that its manifest has in the registry."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(tag))
    shop.client.api.import_image_from_data(packed.getvalue(), repository=name, tag=tag)
    pushed = list(shop.client.api.push(name, tag, stream=True, decode=True))
    (digest,) = [line["aux"]["Digest"] for line in pushed if "aux" in line]
    number = str(shop.client.images.get(f"{name}:{tag}").id)
    shop.client.images.remove(f"{name}:{tag}")
    return number, digest


def push_list(registry: str, name: str, tag: str, digests: dict[str, str]) -> None:
    """A manifest list: platform to digest."""
    kind, entries = "application/vnd.docker.distribution.manifest", []
    for platform, digest in digests.items():
        system, _, architecture = platform.partition("/")
        with urllib.request.urlopen(
            urllib.request.Request(
                f"http://{registry}/v2/{name}/manifests/{digest}", headers={"Accept": f"{kind}.v2+json"}
            )
        ) as answer:
            size = len(answer.read())
        where = {"os": system, "architecture": architecture}
        entries.append({"mediaType": f"{kind}.v2+json", "digest": digest, "size": size, "platform": where})
    content = {"schemaVersion": 2, "mediaType": f"{kind}.list.v2+json", "manifests": entries}
    headers = {"Content-Type": f"{kind}.list.v2+json"}
    address = f"http://{registry}/v2/{name}/manifests/{tag}"
    with urllib.request.urlopen(
        urllib.request.Request(address, json.dumps(content).encode(), headers, method="PUT")
    ) as answer:
        assert answer.status == 201


def test_the_image_of_this_platform_is_held_against_its_pin(shop: Workshop, registry: str) -> None:
    """What `--lock` records of a list in a registry, and what an engine pulled by it."""
    (ours, amd64), (_, arm64) = (push_tiny(shop, f"{registry}/tiny", tag) for tag in ("one", "two"))
    push_list(registry, "tiny", "1", {"linux/amd64": amd64, "linux/arm64": arm64})
    path = shop.project / pins.PINS
    path.write_text(path.read_text().replace("python:3.11-slim-bookworm", f"{registry}/tiny:1"), encoding="utf-8")

    def digest(tag: str) -> str:
        if not tag.startswith(registry):
            raise MissingError("not asked")
        return building.resolve(shop.client, tag)

    def platforms(image: str, listed: str) -> Mapping[str, str] | None:
        return registries.platforms(image, listed) if image.startswith(registry) else {}

    pins.set_base(shop.project, "export", pins.PINNED)
    assert f"base.export.linux/arm64: {arm64}" in pins.lock(shop.project, pins.Registries(digest, platforms), ARCH)
    image = shop.plan("export")
    assert (image.base_digest, image.base_name) == (amd64, f"{registry}/tiny:1")
    assert building._base(shop.client, image, BuildSettings(), shop.said.append) == ours
    assert shop.said == [f"pulling {registry}/tiny@{image.base.rpartition('@')[2]}", f"pulling {registry}/tiny@{amd64}"]
    assert building._base(shop.client, image, BuildSettings(), shop.said.append) == ours and len(shop.said) == 2

    path.write_text(path.read_text().replace(amd64, arm64), encoding="utf-8")
    for _ in range(2):  # the second finds what the first has pulled
        with pytest.raises(DataError, match=rf"is not {registry}/tiny@{arm64} on linux/amd64"):
            building._base(shop.client, shop.plan("export"), BuildSettings(), shop.said.append)
    offline = BuildSettings(offline=True)
    assert building._base(shop.client, shop.plan("export"), offline, shop.said.append) == ours
    assert shop.said[-1] == "the base is not checked against its pin for linux/amd64: images.offline is set"
    for reference in (image.base, f"{registry}/tiny@{amd64}", f"{registry}/tiny@{arm64}"):
        shop.client.images.remove(reference)
