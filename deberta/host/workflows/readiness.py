"""What can run here now: each profile by backend, judged by doctor's checks or by looks that take a blink."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping, NamedTuple, Optional, Sequence

from deberta.ascend import cann
from deberta.core.contract import BACKENDS
from deberta.core.errors import DebertaError, some
from deberta.core.schema import Backend, Executor, Schema
from deberta.host.engine import ping
from deberta.host.environments import platforms, stages
from deberta.host.plan.plan import Plan
from deberta.host.workflows import doctor
from deberta.host.workflows.doctor import CHECKS, MISSING, OK, HostCheck

ASCEND, CPU = BACKENDS


class HostParts(NamedTuple):
    """What this machine has. `stages`: a Python for them, `installed`: and its packages; `engine`: None if not known.

    `images`: the stage images of the ascend backend are here or can be built. `lacking`: what the stages have not.
    """

    stages: bool
    installed: bool
    cann: bool
    msame: bool
    npu: bool
    engine: Optional[bool]
    images: bool
    lacking: str = "Python 3.11"


class Readiness(Schema):
    """`now`: what runs; `needs`: what to do, and what runs then; `absent`: what is not here, and what it lacks."""

    now: Sequence[str]
    note: str
    needs: Mapping[str, Sequence[str]]
    absent: Mapping[str, Sequence[str]]
    unknown: Sequence[str]

    @property
    def line(self) -> str:
        """As in: can run now: demo | needs fetch: mnli on cpu | not here: ascend (CANN, msame, NPU)."""
        absent = ", ".join(f"{name} ({', '.join(lacking)})" for name, lacking in self.absent.items())
        parts = [f"can run now: {', '.join(self.now) or 'nothing'}{self.note}"]
        parts += [f"needs {action}: {', '.join(names)}" for action, names in self.needs.items()]
        parts += [f"not here: {absent}"] if absent else []
        parts += [f"not known: {', '.join(self.unknown)}"] if self.unknown else []
        return " | ".join(parts)


def look(project: Path, python: Optional[Path], cann_setting: str, msame_path: Path) -> HostParts:
    """The machine at a glance: starts no program but perhaps a Python, and waits for no engine."""
    try:
        has_cann = cann.search(cann_setting)[0] is not None
    except DebertaError:
        has_cann = False
    installed = os.access(python, os.X_OK) if python else stages.find(project) is not None
    engine, npu, system = ping.answers(), doctor.devices().state == OK, doctor.stages_system()
    is_possible = python is None and system.state == OK and stages.find_python() is not None
    return HostParts(
        stages=installed or is_possible,
        installed=installed,
        cann=has_cann,
        msame=doctor.msame(msame_path).state == OK,
        npu=npu,
        engine=engine,
        images=bool(npu and engine) and _has_images(tuple(doctor.stage_images(project))),
        lacking=_lacking([system]),
    )


def of_checks(checks: Sequence[HostCheck]) -> HostParts:
    """The machine as doctor saw it."""
    states = {check.name: check.state for check in checks}
    python, packages = CHECKS["stages-python"].name, CHECKS["stages-packages"].name
    system = CHECKS["stages-system"].name
    return HostParts(
        stages=MISSING not in (states.get(python, MISSING), states.get(packages), states.get(system)),
        installed=states.get(packages) == OK,
        cann=states.get(CHECKS["cann"].name) == OK,
        msame=states.get(CHECKS["msame"].name) == OK,
        npu=states.get(CHECKS["devices"].name) == OK,
        engine=states.get(CHECKS["engine"].name) == OK,
        images=_has_images(checks),
        lacking=_lacking(checks),
    )


def _lacking(checks: Sequence[HostCheck]) -> str:
    """What the stages need to run here: a system that their wheels are for, or else a Python."""
    system = [c.required for c in checks if c.name == CHECKS["stages-system"].name and c.state == MISSING]
    return system[0] if system else "Python 3.11"


def _has_images(checks: Sequence[HostCheck]) -> bool:
    images = {CHECKS[f"image-{stage}"].name for stage in ("export", "compile", "runtime")}
    return images <= {check.name for check in checks if check.state == OK}


def judge(workspace: Path, plans: Sequence[Plan], wrong: Sequence[str], here: HostParts) -> Readiness:
    """What runs of these profiles; `wrong` are the names of those whose settings cannot be read."""
    parts = {"CANN": here.cann, "msame": here.msame, "NPU": here.npu}
    absent = {name: [f"see invoke doctor --profile {name}"] for name in wrong}
    backends = [CPU] if here.stages or here.engine else []
    if (here.stages and all(parts.values())) or (here.npu and here.engine and here.images):
        backends.append(ASCEND)
    else:
        absent[ASCEND] = [name for name, is_here in parts.items() if not is_here] or [here.lacking]
    if not backends:
        absent[CPU] = [here.lacking]
    if here.engine is False:
        absent["containers"] = ["Docker"]
    now: list[str] = []
    needs: dict[str, list[str]] = {}
    for plan in plans if backends else ():
        profile = plan.profile
        name = profile.name if profile.name == "demo" else f"{profile.name} on {' and '.join(backends)}"
        missing = [check.name for check in doctor.inputs(workspace, plan) if check.state == MISSING]
        data = {str(profile.data_path(version)): version for version in profile.rows}
        present = [version for path, version in data.items() if path not in missing]
        if not missing:
            now.append(name)
        elif present and not set(missing) - set(data):
            now.append(f"{name} ({', '.join(present)} alone)")
        else:
            command = plan.source(profile.checkpoint_path).command
            is_ours = command.startswith("invoke ")
            action = command.split(" ", 1)[1].replace(f" --profile {profile.name}", "") if is_ours else "its files"
            needs.setdefault(action, []).append(name if is_ours else f"{name} ({some(missing, 2)})")
    notes = ["; in containers, too"] if here.engine and here.stages else ["; in containers"] if here.engine else []
    if here.stages and not here.installed:
        notes.append(f" (the first command gets {platforms.megabytes(stages.STAGES_LOCK)} MB of packages)")
    unknown = ["containers (Docker was not asked, or was slow)"] if here.engine is None else []
    return Readiness(now=now, note="".join(notes) if now else "", needs=needs, absent=absent, unknown=unknown)


class Diagnosis(Schema):
    """What doctor --json prints. `missing`: names of the checks that fail and that this backend and executor need."""

    can_run: Readiness
    profile: str
    backend: Backend
    executor: Executor
    ready: bool
    missing: Sequence[str]
    checks: Sequence[HostCheck]
