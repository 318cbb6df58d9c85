"""A step's container as data, as arguments of the docker SDK, and as a `docker run` command to paste.

No network, no capabilities, no new privileges, a read-only root, bounded memory, processes and output. The workspace's
folders are mounted read-only, except those of the step's outputs; inputs in these folders stay read-only. Ids in it are
those outside, whatever mapping the engine has for others: only so can it write to a folder of the caller's.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Mapping, NamedTuple, Sequence

from deberta.ascend import programs
from deberta.core import files
from deberta.host.engine.limits import LOG_DRIVER, LOG_OPTIONS, ContainerLimits
from deberta.host.plan.plan import Step

ROOT = PurePosixPath("/workspace")  # the workspace in a container
CODE = PurePosixPath("/opt/deberta-ascend")  # our package's folder there
PYTHON = "/opt/stages/bin/python"  # of the export image
_FLAGS = {  # the SDK's name of an option: that of `docker run`
    "network_mode": "--network", "cap_drop": "--cap-drop", "security_opt": "--security-opt", "tmpfs": "--tmpfs",
    "user": "--user", "group_add": "--group-add", "devices": "--device",
    "working_dir": "--workdir", "runtime": "--runtime", "userns_mode": "--userns", "pids_limit": "--pids-limit",
    "mem_limit": "--memory",
}  # fmt: skip


class User(NamedTuple):
    """The owner of the files that a container writes. `note`: why it is not the caller, if it is not."""

    uid: int
    gid: int
    note: str = ""


class Mount(NamedTuple):
    """A file or folder of this machine in the container, read-only by default."""

    source: Path
    target: PurePosixPath
    writable: bool = False


class Access(NamedTuple):
    """What a container needs to reach an NPU: device nodes and driver mounts one by one, or the vendor's runtime."""

    nodes: Sequence[tuple[Path, str]] = ()  # path on this machine, path in the container
    mounts: Sequence[Mount] = ()
    groups: Sequence[int] = ()
    runtime: str = ""
    variables: Sequence[tuple[str, str]] = ()


class Container(NamedTuple):
    """Everything that decides how a step's container runs."""

    image: str
    command: Sequence[str]
    folder: PurePosixPath
    user: User
    mounts: Sequence[Mount]
    variables: Mapping[str, str]
    access: Access = Access()
    selinux: Literal["", "relabel", "unconfined"] = ""  # see `for_selinux`
    limits: ContainerLimits = ContainerLimits()


def of_step(
    step: Step, arguments: Sequence[str], image: str, project: Path, workspace: Path, user: User, access: Access
) -> Container:
    """The container of one run of a step; its scratch folder need not exist yet."""
    scratch, inside = workspace / programs.scratch(step.name), ROOT / programs.scratch(step.name)
    mounts = [Mount((workspace / kind).resolve(), ROOT / kind) for kind in programs.KINDS]
    mounts += [Mount((workspace / folder).resolve(), ROOT / folder, writable=True) for folder in step.writes]
    mounts += [Mount(scratch, inside, writable=True), Mount(scratch / "passwd", PurePosixPath("/etc/passwd"))]
    mounts += [mount for needed in step.inputs for mount in _input(workspace, needed.path, step.writes)]
    variables = {"HOME": str(inside / "home"), "TMPDIR": str(inside / "home")}
    if step.tool:
        variables.update(access.variables)
        return Container(image, (*step.program, *arguments), inside, user, (*mounts, *access.mounts), variables, access)
    mounts.append(Mount(project / "deberta", CODE / "deberta"))
    variables.update(PYTHONPATH=str(CODE), PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8", PYTHONDONTWRITEBYTECODE="1")
    return Container(image, (PYTHON, "-m", step.module, *arguments), ROOT, user, tuple(mounts), variables)


def _input(workspace: Path, path: PurePosixPath, written: Sequence[PurePosixPath]) -> list[Mount]:
    """Mounts of its own for an input that would be writable or absent without: links, in a folder too, or elsewhere."""
    source, kind = workspace / path, path.parts[0]
    names = files.files_in(source) if source.is_dir() else []
    links = [Mount((source / name).resolve(), ROOT / path / name) for name in names if (source / name).is_symlink()]
    if not path.is_absolute() and kind in programs.KINDS:
        mounted = Path(os.path.realpath(workspace / kind), *path.parts[1:])
        if mounted == Path(os.path.realpath(source)) and not any(folder in path.parents for folder in written):
            return links
    return [Mount(source.resolve(), ROOT / path), *links]


def for_selinux(container: Container, folders: Sequence[Path]) -> Container:
    """The container for an engine with SELinux, which denies it all files that have no container's label.

    If all that it mounts lies in `folders` and is the caller's, that gets the label which containers share
    (`docker run --volume SOURCE:TARGET:z`). What lies elsewhere, such as a checkpoint in another folder or the NPU's
    driver, must keep its label, and device nodes cannot have another: such a container runs without SELinux's
    confinement. So does one with a colon in a path, which --volume cannot take.
    """
    access = container.access
    ours = not access.nodes and not access.runtime and all(_is_ours(mount, folders) for mount in container.mounts)
    return container._replace(selinux="relabel" if ours else "unconfined")


def _is_ours(mount: Mount, folders: Sequence[Path]) -> bool:
    if ":" in f"{mount.source}{mount.target}" or not any(folder in mount.source.parents for folder in folders):
        return False
    return not os.path.exists(mount.source) or os.getuid() in (0, os.stat(mount.source).st_uid)


def passwd(container: Container) -> str:
    """/etc/passwd with a line for the container's user, whose name or home some programs look up."""
    lines, user = ["root:x:0:0:root:/root:/bin/sh"], container.user
    if user.uid:
        lines.append(f"user:x:{user.uid}:{user.gid}::{container.variables['HOME']}:/bin/sh")
    return "\n".join(lines) + "\n"


def create_arguments(container: Container, image_id: str, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of the SDK's containers.create."""
    options = {**_options(container), "labels": dict(labels), "read_only": True}
    if container.selinux == "relabel":
        options["volumes"] = [_volume(mount) for mount in container.mounts]
    else:
        options["mounts"] = [
            {"Type": "bind", "Source": str(mount.source), "Target": str(mount.target), "ReadOnly": not mount.writable}
            for mount in container.mounts
        ]
    options["log_config"] = {"Type": LOG_DRIVER, "Config": LOG_OPTIONS}
    command, variables = list(container.command), dict(container.variables)
    return {"image": image_id, "command": command, "name": name, "environment": variables, **options}


def command_line(container: Container) -> list[str]:
    """The same as a `docker run` command."""
    line = ["docker", "run", "--rm", "--read-only"]
    for name, values in _options(container).items():
        if isinstance(values, dict):
            values = [f"{place}:{option}" if option else place for place, option in values.items()]
        for value in values if isinstance(values, list) else [str(values)]:
            line += [_FLAGS[name], value]
    line += ["--log-driver", LOG_DRIVER]
    for name, value in LOG_OPTIONS.items():
        line += ["--log-opt", f"{name}={value}"]
    for mount in container.mounts:
        line += ["--volume", _volume(mount)] if container.selinux == "relabel" else ["--mount", _csv(mount)]
    for variable, value in container.variables.items():
        line += ["--env", f"{variable}={value}"]
    return [*line, container.image, *container.command]


def _options(container: Container) -> dict[str, Any]:
    """What the SDK and `docker run` take in the same form, by the SDK's names."""
    access = container.access
    options: dict[str, Any] = {
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", *(["label=disable"] if container.selinux == "unconfined" else [])],
        "userns_mode": "host",
        "tmpfs": {"/tmp": f"size={container.limits.tmp}" if container.limits.tmp else ""},
        "user": f"{container.user.uid}:{container.user.gid}",
        "group_add": [str(group) for group in access.groups],
        "devices": [f"{source}:{target}:rwm" for source, target in access.nodes],
        "working_dir": str(container.folder),
    }
    if container.limits.pids:
        options["pids_limit"] = container.limits.pids
    if container.limits.memory:
        options["mem_limit"] = container.limits.memory
    if access.runtime:
        options["runtime"] = access.runtime
    return options


def _volume(mount: Mount) -> str:
    """A mount in the only form that can ask for another label."""
    return f"{mount.source}:{mount.target}:{'rw' if mount.writable else 'ro'},z"


def _csv(mount: Mount) -> str:
    """The value of --mount, which is read as a line of CSV."""
    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([*fields, *([] if mount.writable else ["readonly"])])
    return text.getvalue()
