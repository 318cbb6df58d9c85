"""The Docker engine: its address, errors, and containers, which run one at a time and are always removed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import socket
import tarfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

import docker
import docker.errors
import docker.utils
import requests.exceptions
from docker.context import ContextAPI

from deberta.core.errors import INTERRUPTED, ConfigError, MissingError, StageError, one_line
from deberta.host.engine import address as addresses
from deberta.host.engine import api_version, containers, limits, ping, traits, unfinished
from deberta.host.engine.containers import Container
from deberta.host.engine.reaper_process import ReaperProcess
from deberta.host.engine.traits import Traits
from deberta.host.engine.transcript import GRACE_SECONDS, Show, transcript

LABEL = "deberta-ascend"  # =container or =image: only what carries it is ever removed
OF_WORKSPACE, OF_SESSION, KEPT = f"{LABEL}.workspace", f"{LABEL}.session", f"{LABEL}.keep"
OF_DEVICE = f"{LABEL}.device"
AT_WORK = ("running", "paused", "restarting")
ANSWER_SECONDS = 60  # timeout of a request, except builds and runs
PING_SECONDS = 5.0  # for a first answer; the SDK then waits as long as it was told to
# What OpenSSL says of an answer that is no TLS.
_SPEAKS_PLAIN = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|packet length too long", re.IGNORECASE)
_FAILURES = (docker.errors.DockerException, requests.exceptions.RequestException, OSError, ValueError)


def address(variables: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The SDK's base_url, and tls where the engine takes certificates. Raises ConfigError."""
    where = addresses.endpoint(variables)
    if not where.tls:
        return {"base_url": where.url}
    try:
        if where.context:
            return {"base_url": where.url, "tls": ContextAPI.get_context(where.context).TLSConfig or True}
        return {
            "base_url": where.url,
            "tls": docker.utils.kwargs_from_env(environment=dict(variables)).get("tls", True),
        }
    except _FAILURES as error:
        of = f"of {where.source}" if where.context else "that DOCKER_TLS_VERIFY and DOCKER_CERT_PATH name"
        raise ConfigError(f"the certificates {of} cannot be used: {error}") from None


def check_local(base_url: str, machine_name: Optional[Callable[[], str]] = None) -> None:
    """Raise ConfigError for an engine on another machine. `machine_name` asks the engine for its machine's name."""
    where = addresses.parse(base_url)
    if where.path:
        return
    why = "folders are mounted from the engine's own machine, and the workspace is on this one"
    instead = "Use --executor local, or an engine on this machine (DOCKER_HOST=unix:///var/run/docker.sock)"
    if where.is_remote:
        raise ConfigError(f"the Docker engine at {base_url} is remote: {why}. {instead}")
    if machine_name and (name := machine_name()) != socket.gethostname():
        raise ConfigError(f"behind {base_url} is the Docker engine of the machine {name!r}: {why}. {instead}")


def connect(timeout: float = ANSWER_SECONDS) -> Any:
    """A client of an engine on this machine that answered, for an API version that it and we know.

    Raises ConfigError and MissingError.
    """
    where = addresses.endpoint()
    check_local(where.url)  # before a request, which may take a minute to fail
    look = ping.ask(where, min(timeout, PING_SECONDS))
    if look.answers is False or (look.answers is None and not where.tls and timeout <= PING_SECONDS):
        raise MissingError(f"{look.problem}, or use --executor local")
    arguments = address()
    try:
        least = api_version.text(api_version.LEAST)
        with contextlib.closing(docker.APIClient(**arguments, timeout=timeout, version=least)) as asked:
            version = api_version.pick(asked.version(api_version=False), where.text)
        client = docker.DockerClient(**arguments, timeout=timeout, version=version)
        check_local(where.url, lambda: str(client.info().get("Name", "")))
    except _FAILURES as error:
        reason, advice = one_line(str(error))[:200], "Start one, set DOCKER_HOST"
        if where.tls and _SPEAKS_PLAIN.search(reason):
            reason, advice = "it speaks no TLS", "Unset DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, or correct the context"
        raise MissingError(
            f"no Docker engine answers at {where.text}: {reason}. {advice}, or use --executor local"
        ) from None
    return client


@contextlib.contextmanager
def explained(action: str) -> Iterator[None]:
    """Turn the SDK's errors into ours, which name the action: "listing images"."""
    try:
        yield
    except docker.errors.APIError as error:
        reason = str(error.explanation or error)
        if "bind source path does not exist" in reason or ("statfs" in reason and "no such file" in reason):
            raise ConfigError(
                f"the Docker engine does not see a folder of this machine ({reason}): it runs elsewhere, or in a "
                "virtual machine that does not share it. Use --executor local"
            ) from None
        raise StageError(f"the Docker engine refused {action}: {reason}") from None
    except (docker.errors.DockerException, requests.exceptions.RequestException, ConnectionError) as error:
        raise StageError(
            f"the Docker engine stopped answering while {action} ({error}). Start it again, then run the same command"
        ) from None


class DockerEngine:
    """An engine in use for one workspace: `with DockerEngine(...) as engine`. The workspace's lock must be held.

    Containers that an earlier process of ours left in this workspace are removed first. A process of its own, the
    reaper, removes the containers of this one if it is killed. `is_sibling`: another process of the same command has
    looked after them, and does at the end.
    """

    def __init__(self, workspace: Path, keep: bool, show: Show, is_sibling: bool = False) -> None:
        self._is_sibling = is_sibling
        self._workspace, self._keep, self._show = workspace, keep, show
        self._session = uuid.uuid4().hex
        self._labels = {**container_labels(workspace, keep), OF_SESSION: self._session}
        self._reaper: ReaperProcess | None = None
        self._may_leave_container = False  # one may exist on the engine that was not removed or kept on purpose
        self.client: Any = None

    def __enter__(self) -> DockerEngine:
        self.client = connect()
        if not self._is_sibling:
            unfinished.begin_containers(self._workspace)
            remove_left(self.client, self._workspace, self._show)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reaper is not None:
            if self._may_leave_container:
                self._reaper.leave()
            else:
                self._reaper.end()
        self.client.close()
        if not self._may_leave_container and not self._is_sibling:
            unfinished.end_containers(self._workspace)

    @functools.cached_property
    def traits(self) -> Traits:
        with explained("asking how it runs containers"):
            return traits.of(self.client.info())

    def has_runtime(self, name: str) -> bool:
        return name in (self.client.info().get("Runtimes") or {})

    def read(self, image_id: str, path: str) -> bytes:
        """A file of an image. Raises StageError."""
        with explained(f"reading {path} of {image_id}"), unstarted(self.client, image_id, self._labels) as container:
            chunks, _ = container.get_archive(path)
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
                member = archive.extractfile(archive.getmembers()[0])
                return member.read() if member else b""

    def hold(self, files: Sequence[int]) -> None:
        """Keep files open as long as the next container runs, even if we are killed; none: close them again."""
        if files:
            self._start_reaper().hold(files)
        elif self._reaper is not None:
            self._reaper.free()

    def _start_reaper(self) -> ReaperProcess:
        self._reaper = self._reaper or ReaperProcess(self._session)
        return self._reaper

    def run(
        self,
        plan: Container,
        image_id: str,
        name: str,
        log: Path,
        show: Show,
        graceful: bool,
        device: Optional[int] = None,
    ) -> tuple[list[str], int]:
        """Run a container; its lines go to `show` and the log. Returns them and the exit code.

        `graceful`: it handles SIGINT and gets time to. `device`: that it uses, whose lock must be held. Raises
        KeyboardInterrupt if it or we were interrupted, StageError if it was removed, or killed for memory, or the
        engine went away, or another container has the device.
        """
        for mount in plan.mounts:  # Podman would create a folder of that name
            if not mount.source.exists():
                raise MissingError(f"{mount.source} is missing, and the container needs it. Run: invoke doctor")
        labels = dict(self._labels)
        if device is not None:
            self._clear(device)
            labels[OF_DEVICE] = str(device)
        unique = f"{LABEL}-{name}-{uuid.uuid4().hex[:8]}"
        self._start_reaper()
        self._may_leave_container = True  # an interrupt during the next call may leave one that we do not know
        with explained(f"creating a container of {plan.image}"):
            container = self.client.containers.create(**containers.create_arguments(plan, image_id, unique, labels))
        try:
            lines, code = self._follow(container, plan, log, show, graceful)
        finally:
            if not self._keep:
                with contextlib.suppress(*_FAILURES):  # the engine is gone: the next run removes it
                    remove(container)
                    self._may_leave_container = False
        if self._keep:
            self._may_leave_container = False
            self._show(f"container {unique} is kept (ended with {code}). Remove it with: invoke clean --containers")
        if code == INTERRUPTED and graceful:
            raise KeyboardInterrupt
        return lines, code

    def _clear(self, device: int) -> None:
        """Remove a container of this workspace that still has a device, which its run and the reaper left.

        Raises StageError for one of another workspace: its lock may be in another folder.
        """
        with explained(f"looking for containers on device {device}"):
            for left in labelled(self.client, {LABEL: "container", OF_DEVICE: str(device)}):
                if left.labels.get(OF_WORKSPACE) == workspace_label(self._workspace) and left.status in AT_WORK:
                    self._show(f"removing container {left.name}, which an earlier run left on device {device}")
                    remove(left)
                elif left.status in AT_WORK:
                    raise StageError(
                        f"container {left.name} of another workspace is on device {device}, and no run has that "
                        f"device's lock. If nobody needs it, remove it: docker rm --force {left.name}"
                    )

    def _follow(self, container: Any, plan: Container, log: Path, show: Show, graceful: bool) -> tuple[list[str], int]:
        with transcript(log, containers.command_line(plan), show) as record, explained(f"running {container.name}"):
            try:
                output = container.attach(stdout=True, stderr=True, stream=True, logs=True)
                container.start()
                lines = record(_lines(output))
                code = int(container.wait()["StatusCode"])
                container.reload()
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    show("stopping; interrupt again to kill it at once")
                _stop(container, graceful)
                raise
            except docker.errors.NotFound:
                raise StageError(
                    f"container {container.name} was removed while it ran. Run the command again"
                ) from None
            if container.attrs.get("State", {}).get("OOMKilled"):
                raise StageError(limits.out_of_memory(f"container {container.name}", plan.limits, log))
        return lines, code


def container_labels(workspace: Path, keep: bool = False) -> dict[str, str]:
    """The labels of a container that works for a workspace. `keep`: it stays when it has ended."""
    return {LABEL: "container", OF_WORKSPACE: workspace_label(workspace), KEPT: "yes" if keep else "no"}


def workspace_label(workspace: Path) -> str:
    """The value of OF_WORKSPACE: a hash, since a path may not be valid as a label."""
    return hashlib.sha256(os.fsencode(workspace.resolve())).hexdigest()[:20]


def labelled(client: Any, labels: Mapping[str, str]) -> Sequence[Any]:
    """Every container with all these labels, running or not."""
    filters = {"label": [f"{name}={value}" for name, value in labels.items()]}
    return list(client.containers.list(all=True, filters=filters, ignore_removed=True))


def remove_left(client: Any, workspace: Path, show: Show) -> None:
    """Remove the containers that an earlier run left in a workspace, but for those that it kept and that have ended.

    The workspace's lock must be held.
    """
    with explained("looking for containers of an earlier run"):
        for left in labelled(client, {LABEL: "container", OF_WORKSPACE: workspace_label(workspace)}):
            if left.status in AT_WORK or left.labels.get(KEPT) != "yes":
                show(f"removing container {left.name}, which an earlier run left")
                remove(left)


def remove(container: Any) -> None:
    """Kill and remove a container; it is no error if it is gone or is being removed."""
    try:
        container.remove(force=True, v=True)
    except docker.errors.APIError as error:
        if not isinstance(error, docker.errors.NotFound) and "in progress" not in str(error.explanation):
            raise


@contextlib.contextmanager
def unstarted(client: Any, image_id: str, labels: Mapping[str, str]) -> Iterator[Any]:
    """A container that is never started, to read an image's files; removed at the end."""
    container = client.containers.create(image_id, ["none"], labels=dict(labels), network_mode="none")
    try:
        yield container
    finally:
        remove(container)


def _stop(container: Any, graceful: bool) -> None:
    """Send SIGINT to a stage of ours, as Ctrl-C does; kill a tool, whose files have temporary names."""
    if graceful:
        with contextlib.suppress(KeyboardInterrupt, *_FAILURES):
            container.kill("SIGINT")
            container.wait(timeout=GRACE_SECONDS)
            return
    with contextlib.suppress(*_FAILURES):
        container.kill()


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """The lines of a stream of bytes, each with a line end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace") + "\n"
    if rest:
        yield rest.decode("utf-8", "replace") + "\n"
