"""The docker executor: a step runs in a container of its stage's image, which is built first if it is missing."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shlex
import time
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Sequence

from deberta.ascend import programs
from deberta.core import files, progress, schema
from deberta.core.errors import MissingError
from deberta.core.records import Resource
from deberta.host.engine import containers, npu_access
from deberta.host.engine.containers import Access, Container, User
from deberta.host.engine.engine import DockerEngine
from deberta.host.engine.npu_access import NpuSettings
from deberta.host.engine.transcript import Show
from deberta.host.images import build, contents, definition, pins
from deberta.host.images.definition import BuildSettings, Image
from deberta.host.plan.plan import Step
from deberta.host.run.executor import Provenance
from deberta.host.run.local import script
from deberta.host.run.messages import as_started

ABOUT = f"{containers.CODE}/image.json"  # written by docker/check-cann
STAGES = {"": "export", "atc": "compile", "msame": "runtime", "ais_bench": "compile"}  # tool -> stage image
OWNED = (*programs.KINDS, ".cache")


class DockerExecutor:
    """Connects to the engine when a step has to run; steps that are up to date need none."""

    name = "docker"
    root = Path(containers.ROOT)

    def __init__(self, project: Path, workspace: Path, builds: BuildSettings, npu: NpuSettings, keep: bool) -> None:
        self._project, self._workspace = project, workspace
        self._builds, self._npu, self._keep = builds, npu, keep
        self._engine: DockerEngine | None = None
        self._ids: dict[str, str] = {}  # stage -> image id
        self._user: User | None = None
        self._started = time.time()

    def identity(self, step: Step) -> Mapping[str, Any]:
        return {"image": self._image(step.tool).tag}

    def prepare(self, step: Step) -> None:
        engine, image = self._open(), self._image(step.tool)
        if image.stage not in self._ids:
            self._ids[image.stage] = build.ensure(engine.client, image, self._builds, self._workspace)
            if image.unpinned:
                progress.say(f"image {image.tag} is not pinned: {'; '.join(image.unpinned)}")

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        engine, image = self._open(), self._image(step.tool)
        assert self._user is not None
        access = Access()
        if step.on_device:
            access = npu_access.access(self._npu, step.device, lambda: engine.has_runtime("ascend"))
        container = self._container(step, arguments, image.tag, self._user, access)
        for folder in step.writes:
            _make_folder(self._workspace, folder, self._user)
        scratch = self._workspace / programs.scratch(step.name)
        files.write_text(scratch / "passwd", containers.passwd(container))
        _change_owner(scratch, self._user)
        log = self._workspace / step.log
        return engine.run(container, self._ids[image.stage], step.name, log, show, graceful=not step.tool)

    def provenance(self, step: Step) -> Provenance:
        image = self._image(step.tool)
        resource = Resource(f"image {image.tag}", {"sha256": self._ids[image.stage].partition(":")[2]})
        internal: dict[str, Any] = {
            "pins": f"not pinned: {'; '.join(image.unpinned)}" if image.unpinned else "pinned",
            "image_inputs": dict(image.inputs),
            "image_contents": self._contents(image.stage),
        }
        if step.tool:
            internal["cann"] = self._cann(image.stage)
        return Provenance([resource], internal)

    def show(self, step: Step) -> None:
        try:
            tag = self._image(step.tool).tag
            print(as_started(f"# {tag} is built by: invoke images"))
        except MissingError as error:
            tag = f"deberta-ascend/{STAGES[step.tool]}"
            print(as_started(f"# {error}"))
        access = npu_access.access(self._npu, step.device, lambda: False, check=False) if step.on_device else Access()
        container = self._container(step, step.arguments, tag, owner(self._workspace), access)
        scratch = programs.scratch(step.name)
        setup = [f"printf %s {shlex.quote(containers.passwd(container))} > {scratch / 'passwd'}"]
        if step.tool:
            setup.append(f"ln -sfn {' '.join(f'../../../{kind}' for kind in programs.KINDS)} {scratch}/")
        folders = [*map(PurePosixPath, programs.KINDS), *step.writes, scratch / "home"]
        print("\n".join(script(step, containers.command_line(container), folders, setup)))

    def close(self) -> None:
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.__exit__(None, None, None)
        finally:
            user = self._user or owner(self._workspace)
            for folder in OWNED:  # what root wrote in this session: records, logs
                _change_owner(self._workspace / folder, user, since=self._started - 1)

    def _open(self) -> DockerEngine:
        if self._engine is None:
            self._engine = DockerEngine(self._workspace, self._keep, progress.say).__enter__()
            self._user = User(0, 0) if self._engine.rootless else owner(self._workspace)
            if self._user.note:
                progress.say(self._user.note)
        return self._engine

    @functools.cache  # noqa: B019 - one executor, a few stages
    def _image(self, tool: str) -> Image:
        return definition.plan(self._project, pins.load(self._project), STAGES[tool], platform.machine())

    @functools.cache  # noqa: B019 - as above
    def _cann(self, stage: str) -> str:
        """CANN's version in an image, as docker/check-cann read it there; empty if it could not."""
        return str(schema.decode(self._open().read(self._ids[stage], ABOUT), dict[str, Any]).get("cann_version", ""))

    @functools.cache  # noqa: B019 - as above
    def _contents(self, stage: str) -> str:
        """The digest of an image's file system."""
        return contents.digest(self._open().client, self._ids[stage], self._workspace, f"the {stage} image")

    def _container(self, step: Step, arguments: Sequence[str], tag: str, user: User, access: Access) -> Container:
        # The one NPU of a container is device 0 in it, whatever its number outside.
        inside = without_device(arguments) if step.on_device else tuple(arguments)
        return containers.of_step(step, inside, tag, self._project, self._workspace, user, access)


def without_device(arguments: Sequence[str]) -> tuple[str, ...]:
    """msame's and ais_bench's arguments without --device N."""
    at = arguments.index("--device") if "--device" in arguments else len(arguments)
    return (*arguments[:at], *arguments[at + 2 :])


def owner(workspace: Path) -> User:
    """The owner of the files that containers write: the caller, or the workspace's owner if the caller is root."""
    if os.getuid():
        return User(os.getuid(), os.getgid())
    status = os.stat(next(folder for folder in (workspace, *workspace.parents) if folder.is_dir()))
    user = "root, who owns" if status.st_uid == 0 else f"{status.st_uid}:{status.st_gid}, the owner of"
    return User(status.st_uid, status.st_gid, f"containers run as {user} {workspace} (you are root)")


def _make_folder(workspace: Path, folder: PurePosixPath, user: User) -> None:
    """Make a folder, and those above it, for the user."""
    for path in reversed((folder, *folder.parents[:-1])):
        (workspace / path).mkdir(exist_ok=True)
        if user.uid and os.getuid() == 0 == (workspace / path).stat().st_uid:
            os.chown(workspace / path, user.uid, user.gid)


def _change_owner(folder: Path, user: User, since: float = 0.0) -> None:
    """Give the user what root created below a folder, and the folder, after `since` (seconds of the system's clock)."""
    if os.getuid() or not user.uid:
        return
    for parent, names, children in os.walk(folder):
        for path in (Path(parent, name) for name in (".", *names, *children)):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                if status.st_uid == 0 and status.st_ctime >= since:
                    os.chown(path, user.uid, user.gid, follow_symlinks=False)
