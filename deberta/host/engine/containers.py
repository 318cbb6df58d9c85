"""A step's container as data: what it is made of, as the docker SDK takes it, and as a person would paste it.

No network, no capabilities, no new privileges, a read-only root; the workspace's folders are mounted read-only but for
those that hold the step's outputs, whose inputs are read-only still.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Sequence

from deberta.ascend import programs
from deberta.host.plan.evaluation import Step

ROOT = PurePosixPath("/workspace")  # the workspace in a container
CODE = PurePosixPath("/opt/deberta-ascend")  # our package's folder there
PYTHON = "/opt/stages/bin/python"  # of the export image


@dataclass(frozen=True)
class User:
    """Whose files a container makes. `note` says why it is not the caller, where it is not."""

    uid: int
    gid: int
    note: str = ""


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine in the container, read-only unless said otherwise."""

    source: Path
    target: PurePosixPath
    writable: bool = False


@dataclass(frozen=True)
class Access:
    """What a container needs to reach an NPU: device nodes and driver mounts one by one, or the vendor's runtime."""

    nodes: Sequence[tuple[Path, str]] = ()  # here, and there
    mounts: Sequence[Mount] = ()
    groups: Sequence[int] = ()
    runtime: str = ""
    variables: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Container:
    """Everything that decides how a step's container runs."""

    image: str
    command: Sequence[str]
    folder: PurePosixPath
    user: User
    mounts: Sequence[Mount]
    variables: Mapping[str, str]
    access: Access = Access()


def of_step(
    step: Step, arguments: Sequence[str], image: str, project: Path, workspace: Path, user: User, access: Access
) -> Container:
    """The container of one run of a step, whose scratch folder need not be there yet."""
    scratch, there = workspace / programs.scratch(step.name), ROOT / programs.scratch(step.name)
    mounts = [Mount((workspace / kind).resolve(), ROOT / kind) for kind in programs.KINDS]
    mounts += [Mount((workspace / folder).resolve(), ROOT / folder, writable=True) for folder in step.writes]
    mounts += [Mount(scratch, there, writable=True), Mount(scratch / "passwd", PurePosixPath("/etc/passwd"))]
    mounts += [mount for needed in step.inputs for mount in _input(workspace, needed.path, step.writes)]
    variables = {"HOME": str(there / "home"), "TMPDIR": str(there / "home")}
    if step.tool:
        return Container(image, (*step.program, *arguments), there, user, (*mounts, *access.mounts), variables, access)
    mounts.append(Mount(project / "deberta", CODE / "deberta"))
    python = {"PYTHONPATH": str(CODE), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    python["PYTHONDONTWRITEBYTECODE"] = "1"
    return Container(image, (PYTHON, "-m", step.module, *arguments), ROOT, user, tuple(mounts), {**variables, **python})


def _input(workspace: Path, path: PurePosixPath, written: Sequence[PurePosixPath]) -> list[Mount]:
    """A mount of its own for an input that would else be writable or not there: a link, or a path elsewhere."""
    here, kind = workspace / path, path.parts[0]
    if not path.is_absolute() and kind in programs.KINDS:
        mounted = Path(os.path.realpath(workspace / kind), *path.parts[1:])
        if mounted == Path(os.path.realpath(here)) and not any(folder in path.parents for folder in written):
            return []
    return [Mount(here.resolve(), ROOT / path)]


def passwd(user: User, home: PurePosixPath) -> str:
    """/etc/passwd with a line for the container's user: some programs look up the name or home of theirs."""
    lines = ["root:x:0:0:root:/root:/bin/sh"]
    if user.uid:
        lines.append(f"user:x:{user.uid}:{user.gid}::{home}:/bin/sh")
    return "\n".join(lines) + "\n"


def create_arguments(container: Container, image_id: str, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of the SDK's containers.create."""
    from docker.types import Mount as BindMount

    access = container.access
    mounts = [
        BindMount(str(mount.target), str(mount.source), type="bind", read_only=not mount.writable)
        for mount in container.mounts
    ]
    return {
        "image": image_id,
        "command": list(container.command),
        "name": name,
        "labels": dict(labels),
        "working_dir": str(container.folder),
        "environment": {**container.variables, **dict(access.variables)},
        "user": f"{container.user.uid}:{container.user.gid}",
        "group_add": [str(group) for group in access.groups],
        "mounts": mounts,
        "devices": [f"{here}:{there}:rwm" for here, there in access.nodes],
        **({"runtime": access.runtime} if access.runtime else {}),
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "tmpfs": {"/tmp": ""},
    }


def command_line(container: Container) -> list[str]:
    """The same as a `docker run` command."""
    access = container.access
    line = ["docker", "run", "--rm", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    line += ["--read-only", "--tmpfs", "/tmp", "--user", f"{container.user.uid}:{container.user.gid}"]
    for group in access.groups:
        line += ["--group-add", str(group)]
    for here, there in access.nodes:
        line += ["--device", f"{here}:{there}:rwm"]
    if access.runtime:
        line += ["--runtime", access.runtime]
    for mount in container.mounts:
        line += ["--mount", _csv(mount)]
    for name, value in (*container.variables.items(), *access.variables):
        line += ["--env", f"{name}={value}"]
    return [*line, "--workdir", str(container.folder), container.image, *container.command]


def _csv(mount: Mount) -> str:
    """The value of --mount, which is read as a line of CSV."""
    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([*fields, *([] if mount.writable else ["readonly"])])
    return text.getvalue()
