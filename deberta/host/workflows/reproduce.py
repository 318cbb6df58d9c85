"""reproduce: everything made twice, in two fresh workspaces, and compared by SHA-256.

Each place gets copies of what the user brings and runs our own commands in processes of their own, as two people with
two clones would. What is compared: the inputs, dynamic.onnx, the bins, the compiled models, the outputs, the
evaluations, and the body of report.json. Times, logs and the names of a run's folders are no part of it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from deberta.core import contract, files, records
from deberta.core.differences import differences as json_differences
from deberta.core.errors import ConfigError, DataError, GateError, MissingError, some
from deberta.core.paths import record_of
from deberta.host.plan import matrix
from deberta.host.plan.plan import LATEST, Plan
from deberta.host.report import measurements
from deberta.host.run import local, messages
from deberta.host.run.executor import check_exit
from deberta.host.run.session import Session

if TYPE_CHECKING:
    from deberta.host.images.definition import BuildSettings  # tomlkit is not loaded for the list of tasks

FOLDER = Path(".cache", "reproduce")  # in the workspace
NAMES = ("a", "b-elsewhere")  # not of one length: a path that got into an artifact would show
SETTINGS = "reproduce.json"  # in a place: its settings, and the sign that it is one
GATE = GateError.exit_code
LOOPS = 2  # the fewest that have a time without the first


@dataclass(frozen=True)
class Place:
    """A workspace of one of the two runs, and the executor of its steps."""

    root: Path
    executor: str


@dataclass(frozen=True)
class ReproductionRun:
    """What is made in each place. `plan` has the profile, the backend and the limit."""

    plan: Plan
    batch_sizes: Tuple[int, ...]
    versions: Tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """One artifact of both places. `digests`: empty where it is not there. `must`: a difference fails the run."""

    name: str
    digests: Tuple[str, str]
    must: bool = True
    details: Tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.digests[0] == self.digests[1] and not self.details


def run(
    session: Session,
    planned: ReproductionRun,
    pair: Sequence[Place],
    settings: Mapping[str, Any],
    builds: Optional[BuildSettings],
    keep_places: bool,
) -> None:
    """Make everything in both places and compare. `builds`: also build each stage's image anew, with these settings.

    Raises GateError for a difference, and what `fill`, `make` and `compare` raise.
    """
    if session.dry:
        show(session.project, planned, pair)
        return
    check_disk(session.workspace, pair[0].root.parent, planned)
    try:
        for place in pair:
            fill(place, session.workspace, planned, settings)
            make(session.project, place, planned, place.root.parent / "logs")
        in_images = _rebuild_images(session, planned, builds) if builds else []
        conclude(planned, pair[0].root, pair[1].root, in_images)
    finally:
        for place in pair:
            if keep_places:
                print(f"kept: {place.root}")
            else:
                clear(place)


def show(project: Path, planned: ReproductionRun, pair: Sequence[Place]) -> None:
    """Print what a person could paste to do the same, but for the comparison."""
    for place in pair:
        root = shlex.quote(str(place.root))
        print(f"mkdir -p {root}")
        print(f"cp --parents {shlex.join(map(str, inputs(planned)))} {root}")
        for line in commands(planned):
            command = f"{shlex.quote(str(project / 'inv'))} {shlex.join(line)}"
            print(f"INVOKE_WORKSPACE={root} INVOKE_EXECUTOR={place.executor} {command}")


def conclude(planned: ReproductionRun, first: Path, second: Path, in_images: Sequence[str] = ()) -> None:
    """Print the table and judge it. `in_images`: the paths that differ in two builds of an image. Raises GateError."""
    artifacts = compare(first, second, planned)
    print(f"{first} and {second}:")
    for line in table(artifacts):
        print(line)
    judge(artifacts)
    if in_images:
        raise GateError(f"two builds of an image differ in {len(in_images)} paths: {some(in_images, 20)}")
    print(f"identical: {sum(map(bool, artifacts))} of {len(artifacts)} artifacts")


def _rebuild_images(session: Session, planned: ReproductionRun, builds: BuildSettings) -> List[str]:
    """Build the image of each stage of the run anew; returns what differs from the one that is there."""
    from deberta.host.images import contents  # it needs the SDK, which the list of tasks must not load

    stages = ("export", "compile", "runtime") if planned.plan.backend == "ascend" else ("export",)
    by_tag = contents.rebuild_all(session.project, session.workspace, builds, stages, _say)
    for tag, differences in by_tag.items():
        _say(f"image {tag}: {len(differences)} differences between two builds")
        for line in differences:
            _say(f"  {line}")
    return [f"{tag}{line}" for tag, differences in by_tag.items() for line in differences]


def _say(line: str) -> None:
    print(line, flush=True)


def places(folder: Path, executors: Sequence[str]) -> Tuple[Place, Place]:
    """One executor for both places, or one for each."""
    first, second = executors[0], executors[-1]
    return Place(folder / NAMES[0], first), Place(folder / NAMES[1], second)


def parse_executors(text: str) -> Tuple[str, ...]:
    """`docker`, or `local,docker`. Raises ConfigError."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        contract.one_of("--executor", name, (*contract.EXECUTORS, "auto"))
    if len(names) > 2:
        raise ConfigError(f"--executor {text!r} names {len(names)} executors, and there are two places")
    return names


def present_versions(workspace: Path, plan: Plan) -> Tuple[str, ...]:
    """The versions whose tsv is there; one that is not is named. Raises MissingError if none is."""
    needed = {version: plan.source(plan.profile.data_path(version)) for version in plan.profile.rows}
    there = tuple(version for version, data in needed.items() if (workspace / data.path).exists())
    if not there:
        raise messages.missing(list(needed.values()))
    for version, data in needed.items():
        if version not in there:
            _say(f"{data.path} is missing, so {version} is left out. To have it: {data.command}")
    return there


def inputs(run: ReproductionRun) -> List[PurePosixPath]:
    """What the user brings."""
    profile = run.plan.profile
    given = [profile.checkpoint_path, profile.config_path, profile.tokenizer_path]
    return [*given, *(profile.data_path(version) for version in run.versions)]


def check_inputs(workspace: Path, run: ReproductionRun) -> None:
    """Raise MissingError naming everything that the user brings and that is not there."""
    if absent := [path for path in inputs(run) if not (workspace / path).exists()]:
        raise messages.missing([run.plan.source(path) for path in absent])


def bytes_needed(workspace: Path, run: ReproductionRun) -> int:
    """A generous estimate of what both places take: copies, the ONNX, the models, bins and outputs."""
    sizes = {path: (workspace / path).stat().st_size for path in inputs(run)}
    model = sizes[run.plan.profile.checkpoint_path]
    expected = {v: run.plan.profile.rows[v] or sizes[run.plan.profile.data_path(v)] // 64 for v in run.versions}
    # A performance run takes the bins of all rows, limited or not.
    rows = sum(count + min(count, run.plan.limit) for count in expected.values())
    per_row = len(contract.INPUTS) * contract.SEQUENCE_LENGTH * 4 + 2 * 4096  # a file is a block at least
    made = model * (1 + len(run.batch_sizes)) + rows * per_row * len(run.batch_sizes)
    return 2 * (sum(sizes.values()) + made)


def check_disk(workspace: Path, folder: Path, run: ReproductionRun) -> None:
    """Raise MissingError if the disk has no room for both places."""
    needed = bytes_needed(workspace, run)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise MissingError(
            f"two places of profile {run.plan.profile.name} need about {needed / 1e9:.1f} GB in {folder}, and "
            f"{free / 1e9:.1f} GB are free. Free some, or name another folder: invoke reproduce --in DIR"
        )


def fill(place: Place, workspace: Path, run: ReproductionRun, settings: Mapping[str, Any]) -> None:
    """Make a fresh workspace: copies of what the user brings, and this invocation's settings.

    Raises ConfigError for a folder that is there and no place of ours.
    """
    clear(place)
    if place.root.exists():
        raise ConfigError(f"{place.root} is there and was not made by reproduce. Name another folder: --in DIR")
    own = {**settings, "workspace": str(place.root), "executor": place.executor, "backend": run.plan.backend}
    files.write_text(place.root / SETTINGS, json.dumps(own, indent=1) + "\n")
    for path in inputs(run):
        (place.root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(workspace / path, place.root / path)


def clear(place: Place) -> None:
    """Remove a place, and nothing that is none."""
    if (place.root / SETTINGS).exists():
        files.remove(place.root)


def commands(run: ReproductionRun) -> List[List[str]]:
    """The tasks that make everything, from the export to the report, with their options."""
    sizes = ["--bs", ",".join(map(str, run.batch_sizes))]
    one = ["--version", run.versions[0]] if len(run.versions) == 1 < len(run.plan.profile.rows) else []
    limit = ["--limit", str(run.plan.limit)] if run.plan.limit else []
    # Times are not compared, so the performance runs are as short as they can be.
    own = ["--loops", str(LOOPS), "--profile", run.plan.profile.name, "--backend", run.plan.backend]
    return [["acceptance", *sizes, *one, *own, *limit]]


def make(project: Path, place: Place, run: ReproductionRun, logs: Path) -> None:
    """Run all commands in a place. Raises the error of the first one that fails.

    A gate of the acceptance is no failure here: its outcome is in the report.
    """
    for number, command in enumerate(commands(run)):
        line = [sys.executable, "-m", "invoke", "--search-root", str(project)]
        line += ["-f", str(place.root / SETTINGS), *command]
        log = logs / f"{place.root.name}-{number}-{command[0]}.log"
        _say(f"{place.root.name} ({place.executor}): invoke {' '.join(command)}")
        printed, code = local.execute(
            line, project, local.environment(project, os.environ), log, lambda text: _say(f"  {text}")
        )
        if code != GATE:
            check_exit(f"invoke {command[0]} in {place.root}", printed, code, log)


def compare(one: Path, other: Path, run: ReproductionRun) -> List[Compared]:
    """Everything that was made in two workspaces. Raises MissingError if a place has no report, DataError."""
    found = []
    for name, must in names(run, one):
        paths = tuple(_in_place(root, name, run) for root in (one, other))
        digests = (_digest(paths[0]), _digest(paths[1]))
        if any(digests):
            details = _parts(paths[0], paths[1]) if digests[0] != digests[1] else ()
            found.append(Compared(name, digests, must, details))
    return [*found, _report(one, other, run), *_images(one, other, run)]


def names(run: ReproductionRun, root: Path) -> Iterator[Tuple[str, bool]]:
    """What there is to compare, by the lengths of the evaluations in `root`, and whether it has to be equal.

    ATC is not known to give the same .om twice, nor an NPU the same last bits of a logit, so of ascend these are said
    and do not fail: what was counted has to be equal. The reference's last bits are the CPU's, of any backend.
    """
    yield from ((str(path), True) for path in inputs(run))
    base = run.plan.artifacts

    def counts(size: int, version: str) -> PurePosixPath:
        return base.evaluation(size, version).with_suffix(".json")

    artifacts = [
        artifact
        for size in run.batch_sizes
        for version in run.versions
        for artifact in matrix.of_evaluation(base, measurements.lengths_of(root / counts(size, version)), size, version)
    ]
    artifacts += [artifact for version in run.versions for artifact in matrix.of_version(base, version)]
    of_device = (matrix.MODEL, matrix.WEIGHTS, matrix.OUTPUTS)
    for path, kind in dict.fromkeys(artifacts):
        must = kind != matrix.REFERENCE and (kind not in of_device or base.backend != "ascend")
        yield f"{path}{LATEST if kind == matrix.OUTPUTS else ''}", must


def table(found: Sequence[Compared]) -> Iterator[str]:
    """A line for each artifact that is equal; for one that is not both hashes, and what differs in it."""
    for one in found:
        if one:
            yield f"same    {one.digests[0]}  {one.name}"
            continue
        yield f"{'DIFFERS' if one.must else 'differs'} {one.name}"
        for digest in one.digests:
            yield f"        {digest or 'not there'}"
        yield from (f"        {detail}" for detail in one.details)


def judge(found: Sequence[Compared]) -> None:
    """Raise GateError naming every artifact that has to be equal and is not."""
    wrong = [one for one in found if one.must and not one]
    if wrong:
        listed = [f"{one.name} ({one.digests[0] or 'not there'}, {one.digests[1] or 'not there'})" for one in wrong]
        raise GateError(
            f"{len(wrong)} of {len(found)} artifacts differ: {some(listed, 20)}. To look at both places, run it again "
            "with --keep-places"
        )


def _in_place(root: Path, name: str, run: ReproductionRun) -> Optional[Path]:
    """Where an artifact is in a workspace; a run's folder is the only one of its length. None if there is none."""
    if not name.endswith(LATEST):
        return root / name
    parent = root / name[: -len(LATEST)]
    folders = [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    return folders[0] if len(folders) == 1 else None


def _digest(path: Optional[Path]) -> str:
    if path is None or not path.exists():
        return ""
    return f"dirHash {files.folder_digest(path)}" if path.is_dir() else f"sha256  {files.sha256_of(path)}"


def _parts(one: Optional[Path], other: Optional[Path]) -> Tuple[str, ...]:
    """The files that differ in two folders."""
    if one is None or other is None or not (one.is_dir() and other.is_dir()):
        return ()
    first, second = (
        {name: files.sha256_of(folder / name) for name in files.files_in(folder)} for folder in (one, other)
    )
    odd = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    said = [f"{name}: {first.get(name, 'not there')} and {second.get(name, 'not there')}" for name in odd[:3]]
    return (*said, *([f"and {len(odd) - 3} more of {len({*first, *second})} files"] if len(odd) > 3 else []))


def _report(one: Path, other: Path, run: ReproductionRun) -> Compared:
    """The bodies of both reports, by the hash that the stage made of them and value by value."""
    path = run.plan.artifacts.report("json")
    first, second = _read_report(one / path), _read_report(other / path)
    details = tuple(
        f"{difference.place}: {difference.first or 'nothing'} and {difference.second or 'nothing'}"
        for difference in json_differences(first["body"], second["body"], "$.body")
    )
    digests = (f"sha256  {first['body_sha256']}", f"sha256  {second['body_sha256']}")
    more = (f"and {len(details) - 20} more values",) if len(details) > 20 else ()
    return Compared(f"{path}: body", digests, details=(*details[:20], *more))


def _images(one: Path, other: Path, run: ReproductionRun) -> Iterator[Compared]:
    """What was in the images, by tag, where the records of both places say so: each engine builds its own of a tag."""
    first: Dict[str, str] = {}
    second: Dict[str, str] = {}
    for root, contents in ((one, first), (other, second)):
        for name, _ in names(run, root):
            record = records.read(root / record_of(PurePosixPath(name.replace(LATEST, ""))))
            if record and "image_contents" in record.internal:
                contents[str(record.parameters.get("image"))] = str(record.internal["image_contents"])
    for tag in sorted({*first} & {*second}):
        yield Compared(f"contents of {tag}", (f"sha256  {first[tag]}", f"sha256  {second[tag]}"), must=False)


def _read_report(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Run: invoke reproduce, and without --compare") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Run: invoke report") from None
    if not isinstance(content, dict) or not {"body", "body_sha256"} <= set(content):
        raise DataError(f"{path} is not a report. Run: invoke report")
    return content
