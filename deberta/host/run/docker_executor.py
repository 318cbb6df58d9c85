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
from deberta.core.errors import ConfigError, MissingError, one_line
from deberta.core.records import Resource
from deberta.host.engine import containers, limits, npu_access, traits
from deberta.host.engine.containers import Access, Container, User
from deberta.host.engine.engine import DockerEngine, address, connect, explained
from deberta.host.engine.limits import ContainerLimits
from deberta.host.engine.npu_access import NpuSettings
from deberta.host.engine.traits import Traits
from deberta.host.engine.transcript import Show
from deberta.host.images import build, contents, definition, pins
from deberta.host.images.definition import BuildSettings, Image
from deberta.host.plan.plan import Step
from deberta.host.run.executor import Provenance
from deberta.host.run.local import script
from deberta.host.run.messages import as_started

ABOUT = f"{containers.CODE}/image.json"  # written by docker/check-cann
TOOLS = {"atc": "compile", "msame": "runtime", "ais_bench": "compile"}  # tool -> stage image
OWNED = (*programs.KINDS, ".cache")
DRY_SECONDS = 2.0  # for the engine to answer a dry run


class DockerExecutor:
    """Connects to the engine when a step has to run; steps that are up to date need none."""

    name = "docker"
    root = Path(containers.ROOT)

    def __init__(
        self,
        project: Path,
        workspace: Path,
        builds: BuildSettings,
        npu: NpuSettings,
        keep: bool,
        most: ContainerLimits = ContainerLimits(),  # noqa: B008 - it cannot be changed
        is_sibling: bool = False,
    ) -> None:
        self._project, self._workspace = project, workspace
        self._builds, self._npu, self._keep, self._limits = builds, npu, keep, most
        self._is_sibling = is_sibling
        self._engine: DockerEngine | None = None
        self._ids: dict[str, str] = {}  # stage -> image id
        self._started = time.time()

    def identity(self, step: Step) -> Mapping[str, Any]:
        return {"image": self._image(self._stage(step)).tag}

    def prepare(self, step: Step) -> None:
        engine, image = self._open(), self._image(self._stage(step))
        if image.stage not in self._ids:
            self._ids[image.stage] = build.ensure(engine.client, image, self._builds, self._workspace)
            if image.unpinned:
                progress.say(f"image {image.tag} is not pinned: {'; '.join(image.unpinned)}")

    def hold(self, files: Sequence[int]) -> None:
        self._open().hold(files)

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        engine, image = self._open(), self._image(self._stage(step))
        access, user = Access(), owner(self._workspace)
        if step.on_device:
            has_runtime = functools.partial(engine.has_runtime, "ascend")
            access = npu_access.access(self._npu, step.device, has_runtime, engine.traits.rootless)
        container = self._container(step, arguments, image.tag, access, engine.traits)
        for folder in step.writes:
            _make_folder(self._workspace, folder, user)
        scratch = self._workspace / programs.scratch(step.name)
        files.write_text(scratch / "passwd", containers.passwd(container))
        _change_owner(scratch, user)
        log = self._workspace / step.log
        device = step.device if step.on_device else None
        return engine.run(container, self._ids[image.stage], step.name, log, show, not step.tool, device)

    def provenance(self, step: Step) -> Provenance:
        image = self._image(self._stage(step))
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
            tag = self._image(self._stage(step)).tag
            print(as_started(f"# {tag} is built by: invoke images"))
        except MissingError as error:
            tag = f"{definition.REPOSITORY}/{self._stage(step)}"
            print(as_started(f"# {error}"))
        access, of = Access(), self._traits_if_there()
        if step.on_device:
            access = npu_access.access(self._npu, step.device, lambda: False, of.rootless, check=False)
        container = self._container(step, step.arguments, tag, access, of)
        scratch = programs.scratch(step.name)
        setup = [f"printf %s {shlex.quote(containers.passwd(container))} > {scratch / 'passwd'}"]
        if step.tool:
            setup.append(f"ln -sfn {' '.join(f'../../../{kind}' for kind in programs.KINDS)} {scratch}/")
        folders = [*map(PurePosixPath, programs.KINDS), *step.writes, scratch / "home"]
        print("\n".join(script(step, containers.command_line(container), folders, setup)))

    def sibling(self) -> DockerExecutor:
        settings = (self._builds, self._npu, self._keep, self._limits)
        return DockerExecutor(self._project, self._workspace, *settings, is_sibling=True)

    def close(self) -> None:
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.__exit__(None, None, None)
        finally:
            user = owner(self._workspace)
            for folder in OWNED:  # what root wrote in this session: records, logs
                _change_owner(self._workspace / folder, user, since=self._started - 1)

    def _open(self) -> DockerEngine:
        if self._engine is None:
            self._engine = DockerEngine(self._workspace, self._keep, progress.say, self._is_sibling).__enter__()
            of = self._engine.traits
            for note in (
                () if self._is_sibling else (*_check_ids(of, owner(self._workspace)), *limits.notes(self._limits, of))
            ):
                progress.say(note)
        return self._engine

    @functools.cache  # noqa: B019 - as below
    def _traits_if_there(self) -> Traits:
        """Of the engine that lines of a dry run would be pasted for; of the usual one if none answers."""
        try:
            client = connect(DRY_SECONDS)
        except (ConfigError, MissingError) as error:
            print(f"# for an engine of root's without SELinux, since none was asked: {one_line(str(error))}")
            return Traits()
        with contextlib.closing(client), explained("asking how it runs containers"):
            return traits.of(client.info())

    @functools.cache  # noqa: B019 - one executor, a few stages
    def _image(self, stage: str) -> Image:
        return definition.plan(self._project, pins.load(self._project), stage, platform.machine())

    def _stage(self, step: Step) -> str:
        """The stage image that a step runs in."""
        if step.tool:
            return TOOLS[step.tool]
        return pins.RUNTIME_CPU if self._builds.runtime_cpu and not step.needs_torch else "export"

    @functools.cache  # noqa: B019 - as above
    def _cann(self, stage: str) -> str:
        """CANN's version in an image, as docker/check-cann read it there; empty if it could not."""
        return str(schema.decode(self._open().read(self._ids[stage], ABOUT), dict[str, Any]).get("cann_version", ""))

    @functools.cache  # noqa: B019 - as above
    def _contents(self, stage: str) -> str:
        """The digest of an image's file system."""
        return contents.digest(self._open().client, self._ids[stage], self._workspace, f"the {stage} image")

    def _container(self, step: Step, arguments: Sequence[str], tag: str, access: Access, of: Traits) -> Container:
        # The one NPU of a container is device 0 in it, whatever its number outside.
        inside = without_device(arguments) if step.on_device else tuple(arguments)
        user = User(0, 0) if of.rootless else owner(self._workspace)
        container = containers.of_step(step, inside, tag, self._project, self._workspace, user, access)
        container = container._replace(limits=limits.possible(self._limits, of))
        folders = [folder for own in (self._project, self._workspace) for folder in (own, own.resolve())]
        return containers.for_selinux(container, folders) if of.selinux else container


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


def _check_ids(of: Traits, user: User) -> list[str]:
    """What to say about whose files containers write on this engine. Raises ConfigError if they would be another's."""
    if of.rootless:
        traits.check_owner(str(address().get("base_url", "")), user.uid)
    mapped = "the engine maps user ids (userns-remap): our containers run outside of that mapping, to write files here"
    return [note for note in (user.note, mapped if of.remapped else "") if note]


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
