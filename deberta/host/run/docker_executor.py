"""The docker executor: a step is a container of its stage's image, which is built first if it is not there."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import shlex
import time
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional, Sequence

from deberta.ascend import programs
from deberta.core import files
from deberta.core.errors import MissingError
from deberta.core.records import Resource
from deberta.host.engine import containers, npu_access
from deberta.host.engine.containers import Access, Container, User
from deberta.host.engine.engine import DockerEngine
from deberta.host.engine.npu_access import NpuSettings
from deberta.host.images import build, contents, definition, pins
from deberta.host.images.definition import BuildSettings, Image
from deberta.host.plan.evaluation import Step
from deberta.host.run.executor import Ground, Show
from deberta.host.run.local import renaming, to_paste

ABOUT = f"{containers.CODE}/image.json"  # what docker/check-cann wrote
STAGES = {"": "export", "atc": "compile", "msame": "runtime", "ais_bench": "compile"}  # tool -> stage image
OWNED = (*programs.KINDS, ".cache")


class DockerExecutor:
    """Opens the engine when a step has to run, and not before: what is up to date needs none."""

    name = "docker"
    root = Path(containers.ROOT)

    def __init__(self, project: Path, workspace: Path, builds: BuildSettings, npu: NpuSettings, keep: bool) -> None:
        self._project, self._workspace = project, workspace
        self._builds, self._npu, self._keep = builds, npu, keep
        self._engine: Optional[DockerEngine] = None
        self._ids: dict[str, str] = {}  # stage -> image id
        self._user: Optional[User] = None
        self._started = time.time()

    def identity(self, step: Step) -> Mapping[str, Any]:
        return {"image": self._image(step).tag}

    def prepare(self, step: Step) -> None:
        engine, image = self._open(), self._image(step)
        if image.stage not in self._ids:
            self._ids[image.stage] = build.find(engine.client, image) or self._build(image)
            if image.unpinned:
                print(f"image {image.tag} is not pinned: {'; '.join(image.unpinned)}")

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        engine, image = self._open(), self._image(step)
        assert self._user is not None
        container = self._container(step, arguments, image.tag, self._user, self._access(step, engine))
        for folder in step.writes:
            _make(self._workspace, folder, self._user)
        scratch = self._workspace / programs.scratch(step.name)
        files.write_text(scratch / "passwd", containers.passwd(self._user, _home(step)))
        _give(scratch, self._user)
        log = self._workspace / step.log
        return engine.run(container, self._ids[image.stage], step.name, log, show, graceful=not step.tool)

    def ground(self, step: Step) -> Ground:
        image = self._image(step)
        resource = Resource(f"image {image.tag}", {"sha256": self._ids[image.stage].partition(":")[2]})
        internal: dict[str, Any] = {
            "pins": f"not pinned: {'; '.join(image.unpinned)}" if image.unpinned else "pinned",
            "image_inputs": dict(image.inputs),
            "image_contents": self._contents(image.stage),
        }
        if step.tool:
            internal["cann"] = self._cann(image.stage)
        return Ground([resource], internal)

    def show(self, step: Step) -> None:
        try:
            tag = self._image(step).tag
            print(f"# {tag} is built by: invoke images")
        except MissingError as error:
            tag = f"deberta-ascend/{STAGES[step.tool]}"
            print(f"# {error}")
        access = npu_access.access(self._npu, step.device, lambda: False, check=False) if step.on_device else Access()
        user = owner(self._workspace)
        container = self._container(step, step.arguments, tag, user, access)
        scratch = programs.scratch(step.name)
        made = [*programs.KINDS, *step.writes, scratch / "home"]
        print(f"mkdir -p {shlex.join(map(str, made))}")
        print(f"printf %s {shlex.quote(containers.passwd(user, _home(step)))} > {scratch / 'passwd'}")
        if step.tool:
            print(f"ln -sfn {' '.join(f'../../../{kind}' for kind in programs.KINDS)} {scratch}/")
        print("\n".join([*to_paste(containers.command_line(container)), *renaming(step)]))

    def close(self) -> None:
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.__exit__(None, None, None)
        finally:
            user = self._user or owner(self._workspace)
            if user.uid != os.getuid() == 0:
                _give_new(self._workspace, user, self._started)

    def _open(self) -> DockerEngine:
        if self._engine is None:
            self._engine = DockerEngine(self._workspace, self._keep, print).__enter__()
            self._user = User(0, 0) if self._engine.rootless else owner(self._workspace)
            if self._user.note:
                print(self._user.note)
        return self._engine

    @functools.cached_property
    def _pins(self) -> pins.ImagePins:
        return pins.load(self._project)

    def _image(self, step: Step) -> Image:
        return self._planned(STAGES[step.tool])

    @functools.cache  # noqa: B019 - one executor, a few stages
    def _planned(self, stage: str) -> Image:
        return definition.plan(self._project, self._pins, stage, platform.machine())

    @functools.cache  # noqa: B019 - as above
    def _cann(self, stage: str) -> str:
        """CANN's version in an image, as docker/check-cann found it there; empty if it found none."""
        return str(json.loads(self._open().read(self._ids[stage], ABOUT)).get("cann_version", ""))

    @functools.cache  # noqa: B019 - as above
    def _contents(self, stage: str) -> str:
        """The digest of what is in an image; once for each id and workspace, since it takes a look at every file."""
        return contents.digest(self._open().client, self._ids[stage], self._workspace)

    def _build(self, image: Image) -> str:
        engine = self._open()
        print(f"building image {image.tag}: {build.why(engine.client, image)}")
        log = self._workspace / ".cache" / "images" / f"{image.stage}.log"
        return build.build(engine.client, image, self._builds, log, lambda line: print(f"  {line}", flush=True))

    def _access(self, step: Step, engine: DockerEngine) -> Access:
        if not step.on_device:
            return Access()
        return npu_access.access(self._npu, step.device, lambda: engine.has_runtime("ascend"))

    def _container(self, step: Step, arguments: Sequence[str], tag: str, user: User, access: Access) -> Container:
        # A container has one NPU, and that is device 0 in it, whatever its number is here.
        given = tuple(arguments) if not step.on_device else without_device(arguments)
        return containers.of_step(step, given, tag, self._project, self._workspace, user, access)


def without_device(arguments: Sequence[str]) -> tuple[str, ...]:
    """msame's and ais_bench's arguments without --device N."""
    kept = list(arguments)
    if "--device" in kept:
        at = kept.index("--device")
        del kept[at : at + 2]
    return tuple(kept)


def owner(workspace: Path) -> User:
    """Whose files containers make: the caller's; if that is root, the owner's of the workspace."""
    if os.getuid():
        return User(os.getuid(), os.getgid())
    there = os.stat(next(folder for folder in (workspace, *workspace.parents) if folder.is_dir()))
    who = "root, who owns" if there.st_uid == 0 else f"{there.st_uid}:{there.st_gid}, the owner of"
    return User(there.st_uid, there.st_gid, f"containers run as {who} {workspace} (you are root)")


def _home(step: Step) -> PurePosixPath:
    return containers.ROOT / programs.scratch(step.name) / "home"


def _make(workspace: Path, folder: PurePosixPath, user: User) -> None:
    """Make a folder, and those above it, as the user's. One that root's pipeline has just made is handed over."""
    for path in reversed((folder, *folder.parents[:-1])):
        there = workspace / path
        there.mkdir(exist_ok=True)
        if there.stat().st_uid == 0:
            _own(there, user)


def _give(folder: Path, user: User) -> None:
    for parent, names, more in os.walk(folder):
        for name in (".", *names, *more):
            _own(Path(parent, name), user)


def _give_new(workspace: Path, user: User, since: float) -> None:
    """Hand what root made in this session (records, logs) to the workspace's owner."""
    for kind in OWNED:
        for parent, names, more in os.walk(workspace / kind):
            for name in (".", *names, *more):
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):
                    entry = os.lstat(path)
                    if entry.st_uid == 0 and entry.st_ctime >= since - 1:
                        _own(path, user)


def _own(path: Path, user: User) -> None:
    if os.getuid() == 0 and user.uid:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
