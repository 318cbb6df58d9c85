"""`clusters` of invoke.yaml: where a cluster's scheduler is, and the certificates of this host."""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Mapping

import msgspec
from msgspec import Meta

from deberta.core import contract, schema
from deberta.core.errors import ConfigError

_ADDRESS = re.compile(r"tls://(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?")  # how a name ends that systems read as an address
EXAMPLE = 'clusters: {lab: {scheduler: "tls://10.0.0.1:8786", certificates: ~/.config/deberta-ascend/lab}}'


class ClusterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cluster.

    `scheduler`: tls://HOST:PORT. `certificates`: the folder of this host's, relative to the project. `shard_seconds`,
    `retries`, `patience`: as `shards` has them for one host. `folder`: what a worker keeps here, models among it.
    """

    scheduler: str
    certificates: str
    shard_seconds: Annotated[float, Meta(gt=0, le=86400)] = 60.0
    retries: Annotated[int, Meta(ge=0, le=100)] = 2
    patience: Annotated[float, Meta(gt=0, le=86400)] = 120.0
    folder: str = "~/.cache/deberta-ascend/cluster"

    @property
    def endpoint(self) -> tuple[str, int]:
        """The scheduler's host, and its port. Raises ConfigError."""
        return endpoint(self.scheduler)


def load(setting: Any, name: str) -> ClusterSettings:
    """A cluster by its name. Raises ConfigError if there is none, and for a scheduler without TLS."""
    clusters: Mapping[str, Any] = schema.setting(setting or {}, dict[str, Any], "clusters")
    if name not in clusters:
        known = f"Known: {', '.join(sorted(clusters))}" if clusters else f"Add it to invoke.yaml: {EXAMPLE}"
        raise ConfigError(f"there is no cluster {name!r} in invoke.yaml. {known}")
    settings = schema.setting(clusters[name], ClusterSettings, f"clusters: {name}")
    endpoint(settings.scheduler)
    return settings


def endpoint(address: str) -> tuple[str, int]:
    """Host and port of tls://HOST:PORT. Raises ConfigError for anything else, above all for what is not encrypted."""
    if match := _ADDRESS.fullmatch(address):
        port = contract.whole(match[2])
        if 0 < port < 65536:
            host = match[1].strip("[]")
            _one_address(host, "the scheduler's address")
            return host, port
    plain = " without TLS anybody on the network could run code on every host." if "tls://" not in address else ""
    raise ConfigError(f"the scheduler's address is {address!r}, and has to be tls://HOST:PORT.{plain}")


def own_address(scheduler: tuple[str, int], wanted: str = "") -> str:
    """The address of this host to listen on: the wanted one, or that from which the scheduler is reached.

    Raises ConfigError for an address that stands for all, for a name, and where no way leads to the scheduler.
    """
    if wanted:
        _one_address(wanted, "--listen")
        try:
            family = socket.AF_INET6 if ipaddress.ip_address(wanted).version == 6 else socket.AF_INET
            with socket.socket(family) as probe:
                probe.bind((wanted, 0))
        except (ValueError, OSError):
            raise ConfigError(f"--listen {wanted!r} is no address of this host. Give one, such as 10.0.0.2") from None
        return wanted
    try:
        [family, _, _, _, place] = socket.getaddrinfo(*scheduler, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"no way leads from here to {scheduler[0]}: {error}. Check the scheduler's address, or give --listen"
        ) from None


def _one_address(host: str, what: str) -> None:
    """Raise ConfigError for an address that stands for all of a host's, and for one that is not written in full."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if _NUMBER.fullmatch(host):
            raise ConfigError(f"{what} {host!r} is neither a name nor an address. Write it in full") from None
        return
    if (getattr(address, "ipv4_mapped", None) or address).is_unspecified:
        raise ConfigError(f"{what} {host} stands for all addresses of a host. Give the cluster's own one")


def certificates_folder(settings: ClusterSettings, project: Path) -> Path:
    """Raises ConfigError for ~ of a user that is not there."""
    return _path(settings.certificates, project)


def worker_folder(settings: ClusterSettings, project: Path) -> Path:
    """Likewise."""
    return _path(settings.folder, project)


def _path(text: str, project: Path) -> Path:
    try:
        return project / Path(text).expanduser()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{text!r} in invoke.yaml is no path: {error}") from None
