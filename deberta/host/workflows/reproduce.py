"""reproduce: everything made twice, in two fresh workspaces, and compared by SHA-256.

Each place gets copies of what the user brings and runs our own commands in processes of their own, as two people with
two clones would. What is compared: the inputs, dynamic.onnx, the bins, the compiled models, the outputs, the
evaluations, and the body of report.json. Times, logs and the names of a run's folders are no part of it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence

import msgspec

from deberta.core import contract, files, progress, records, schema
from deberta.core.differences import JsonDifference, differences
from deberta.core.errors import ConfigError, GateError, MissingError, some
from deberta.core.paths import record_of
from deberta.core.report import Report
from deberta.host.plan import matrix
from deberta.host.plan.plan import LATEST, Plan
from deberta.host.plan.profiles import hashed
from deberta.host.report import measurements
from deberta.host.run import local, messages
from deberta.host.run.executor import check_exit
from deberta.host.run.session import Session

if TYPE_CHECKING:
    from deberta.host.images.definition import BuildSettings  # tomlkit is not loaded for the list of tasks

FOLDER = Path(".cache", "reproduce")  # in the workspace
NAMES = ("a", "b-elsewhere")  # not of one length: a path that got into an artifact would show
SETTINGS = "reproduce.json"  # in a place: its settings, and the sign that it is one
ABSENT = "not there"
LOOPS = 2  # the fewest that have a time without the first


class Place(NamedTuple):
    """A workspace of one of the two runs, and the executor of its steps."""

    root: Path
    executor: str


class ReproductionRun(NamedTuple):
    """What is made in each place. `plan` has the profile, the backend and the limit."""

    plan: Plan
    batch_sizes: Sequence[int]
    versions: Sequence[str]

    @property
    def inputs(self) -> list[PurePosixPath]:
        """What the user brings."""
        return self.plan.profile.inputs(self.versions)


class Compared(NamedTuple):
    """One artifact of both places. `digests`: ABSENT where it is not there. `must`: a difference fails the run."""

    name: str
    digests: tuple[str, str]
    must: bool = True
    details: Sequence[str] = ()

    @property
    def same(self) -> bool:
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

    A dry run prints what a person could paste to do the same, but for the comparison. Raises GateError for a
    difference, MissingError naming all inputs that are not there, and what `fill`, `make` and `compare` raise.
    """
    if absent := [path for path in planned.inputs if not (session.workspace / path).exists()]:
        raise messages.missing([planned.plan.source(path) for path in absent])
    if session.dry:
        command = shlex.join([str(session.project / "inv"), *acceptance(planned)])
        for place in pair:
            root = shlex.quote(str(place.root))
            print(f"mkdir -p {root}")
            print(f"cp --parents {shlex.join(map(str, planned.inputs))} {root}")
            print(f"INVOKE_WORKSPACE={root} INVOKE_EXECUTOR={place.executor} {command}")
        return
    check_disk(session.workspace, pair[0].root.parent, planned)
    try:
        for place in pair:
            fill(place, session.workspace, planned, settings)
            make(session.project, place, planned)
        in_images = _rebuild_images(session, planned, builds) if builds else []
        conclude(planned, (pair[0].root, pair[1].root), in_images)
    finally:
        for place in pair:
            if keep_places:
                print(f"kept: {place.root}")
            else:
                clear(place)


def conclude(planned: ReproductionRun, roots: tuple[Path, Path], in_images: Sequence[str] = ()) -> None:
    """Print a line for each artifact, with both hashes and what differs if it is not equal.

    Raises GateError naming every artifact that has to be equal and is not, and `in_images`: the paths that differ in
    two builds of an image.
    """
    artifacts = compare(roots, planned)
    print(f"{roots[0]} and {roots[1]}:")
    for artifact in artifacts:
        if artifact.same:
            print(f"same    {artifact.digests[0]}  {artifact.name}")
        else:
            head = f"{'DIFFERS' if artifact.must else 'differs'} {artifact.name}"
            print(head, *artifact.digests, *artifact.details, sep="\n        ")
    if wrong := [f"{each.name} ({', '.join(each.digests)})" for each in artifacts if each.must and not each.same]:
        raise GateError(
            f"{len(wrong)} of {len(artifacts)} artifacts differ: {some(wrong, 20)}. To look at both places, run it "
            "again with --keep-places"
        )
    if in_images:
        raise GateError(f"two builds of an image differ in {len(in_images)} paths: {some(in_images, 20)}")
    print(f"identical: {sum(artifact.same for artifact in artifacts)} of {len(artifacts)} artifacts")


def _rebuild_images(session: Session, planned: ReproductionRun, builds: BuildSettings) -> list[str]:
    """Build the image of each stage of the run anew; returns what differs from the one that is there."""
    from deberta.host.images import contents  # it needs the SDK, which the list of tasks must not load

    stages = [
        stage for stage in builds.stages if planned.plan.backend == "ascend" or stage not in ("compile", "runtime")
    ]
    by_tag = contents.rebuild_all(session.project, session.workspace, builds, stages, progress.say)
    for tag, paths in by_tag.items():
        print(f"image {tag}: {len(paths)} differences between two builds", *paths, sep="\n  ")
    return [f"{tag}{line}" for tag, paths in by_tag.items() for line in paths]


def places(folder: Path, executors: Sequence[str]) -> tuple[Place, Place]:
    """One executor for both places, or one for each."""
    first, second = executors[0], executors[-1]
    return Place(folder / NAMES[0], first), Place(folder / NAMES[1], second)


def parse_executors(text: str) -> tuple[str, ...]:
    """`docker`, or `local,docker`. Raises ConfigError."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        contract.one_of("--executor", name, (*contract.EXECUTORS, "auto"))
    if len(names) > 2:
        raise ConfigError(f"--executor {text!r} names {len(names)} executors, and there are two places")
    return names


def check_disk(workspace: Path, folder: Path, run: ReproductionRun) -> None:
    """Raise MissingError if the disk has no room for both places: copies, the ONNX, the models, bins and outputs."""
    profile, sizes = run.plan.profile, {path: files.size_of(workspace / path) for path in run.inputs}
    expected = [profile.rows[version] or sizes[profile.data_path(version)] // 64 for version in run.versions]
    # A performance run takes the bins of all rows, limited or not.
    rows = sum(count + min(count, run.plan.limit) for count in expected)
    per_row = len(contract.INPUTS) * contract.SEQUENCE_LENGTH * 4 + 2 * 4096  # a file is a block at least
    models = sizes[hashed(profile.checkpoint_path)] * (1 + len(run.batch_sizes))
    needed = 2 * (sum(sizes.values()) + models + rows * per_row * len(run.batch_sizes))
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < needed:
        raise MissingError(
            f"two places of profile {profile.name} need about {needed / 1e9:.1f} GB in {folder}, and "
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
    files.write_text(place.root / SETTINGS, json.dumps(own, indent=1, default=dict) + "\n")
    for path in run.inputs:
        (place.root / path).parent.mkdir(parents=True, exist_ok=True)
        if (workspace / path).is_dir():  # it may hold the others
            shutil.copytree(workspace / path, place.root / path, dirs_exist_ok=True)
        else:
            shutil.copyfile(workspace / path, place.root / path)


def clear(place: Place) -> None:
    """Remove a place, and nothing that is none."""
    if (place.root / SETTINGS).exists():
        files.remove(place.root)


def acceptance(run: ReproductionRun) -> list[str]:
    """The task that makes everything, from the export to the report, with its options."""
    plan = run.plan
    version = ["--version", run.versions[0]] if len(run.versions) == 1 < len(plan.profile.rows) else []
    limit = ["--limit", str(plan.limit)] if plan.limit else []
    # Times are not compared, so the performance runs are as short as they can be.
    own = ["--loops", str(LOOPS), "--profile", plan.profile.name, "--backend", plan.backend]
    return ["acceptance", "--bs", ",".join(map(str, run.batch_sizes)), *version, *own, *limit]


def make(project: Path, place: Place, run: ReproductionRun) -> None:
    """Run the acceptance in a place. Raises its error, but for a failed gate: its outcome is in the report."""
    task, settings = acceptance(run), ["--search-root", str(project), "-f", str(place.root / SETTINGS)]
    log = place.root.parent / "logs" / f"{place.root.name}-{task[0]}.log"
    progress.say(f"{place.root.name} ({place.executor}): invoke {' '.join(task)}")
    command = [sys.executable, "-m", "invoke", *settings, *task]
    variables = local.environment(project)
    printed, code = local.execute(command, project, variables, log, lambda text: progress.say(f"  {text}"))
    if code != GateError.exit_code:
        check_exit(f"invoke {task[0]} in {place.root}", printed, code, log)


def compare(roots: tuple[Path, Path], run: ReproductionRun) -> list[Compared]:
    """Everything that was made in two workspaces. Raises MissingError if a place has no report, DataError."""
    artifacts = []
    for name, must in names(run, roots[0]):
        first, second = (_in_place(root, name) for root in roots)
        digests = (_digest(first), _digest(second))
        if digests != (ABSENT, ABSENT):
            details = _files(first, second) if digests[0] != digests[1] else ()
            artifacts.append(Compared(name, digests, must, details))
    return [*artifacts, _report(roots, run), *_images(roots, run)]


def names(run: ReproductionRun, root: Path) -> Iterator[tuple[str, bool]]:
    """What there is to compare, by the lengths of the evaluations in `root`, and whether it has to be equal.

    ATC is not known to give the same .om twice, nor an NPU the same last bits of a logit, so of ascend these are said
    and do not fail: what was counted has to be equal. The reference's last bits are the CPU's, of any backend.
    """
    yield from ((str(path), True) for path in run.inputs)
    base = run.plan.artifacts
    artifacts: list[matrix.Artifact] = []
    for size in run.batch_sizes:
        for version in run.versions:
            lengths = measurements.lengths_of(root / base.evaluation(size, version).with_suffix(".json"))
            artifacts += matrix.of_evaluation(base, lengths, size, version)
    for version in run.versions:
        artifacts += matrix.of_version(base, version)
    of_device = (matrix.MODEL, matrix.WEIGHTS, matrix.OUTPUTS, matrix.PREDICTIONS)
    for path, kind in dict.fromkeys(artifacts):
        must = kind != matrix.REFERENCE and (kind not in of_device or base.backend != "ascend")
        yield f"{path}{LATEST if kind == matrix.OUTPUTS else ''}", must


def _in_place(root: Path, name: str) -> Optional[Path]:
    """Where an artifact is in a workspace; a run's folder is the only one of its length. None if there is none."""
    if not name.endswith(LATEST):
        return root / name
    folders = [path for path in (root / name[: -len(LATEST)]).glob("*") if path.is_dir()]
    return folders[0] if len(folders) == 1 else None


def _digest(path: Optional[Path]) -> str:
    if path is None or not path.exists():
        return ABSENT
    return f"dirHash {files.folder_digest(path)}" if path.is_dir() else f"sha256  {files.sha256_of(path)}"


def _files(first: Optional[Path], second: Optional[Path]) -> list[str]:
    """The files that differ in two folders."""
    if not (first and second and first.is_dir() and second.is_dir()):
        return []
    before, after = ({name: files.sha256_of(root / name) for name in files.files_in(root)} for root in (first, second))
    entries = (JsonDifference(name, before.get(name), after.get(name)) for name in sorted({*before, *after}))
    return _listed((entry for entry in entries if entry.first != entry.second), 3)


def _report(roots: tuple[Path, Path], run: ReproductionRun) -> Compared:
    """The bodies of both reports, by the hash that the stage made of them and value by value."""
    path = run.plan.artifacts.report("json")
    hint = "Run: invoke reproduce, and without --compare"
    first, second = (schema.read(root / path, Report, hint) for root in roots)
    changes = differences(msgspec.to_builtins(first.body), msgspec.to_builtins(second.body), "$.body")
    digests = (f"sha256  {first.body_sha256}", f"sha256  {second.body_sha256}")
    return Compared(f"{path}: body", digests, details=_listed(changes, 20))


def _listed(entries: Iterable[JsonDifference], most: int) -> list[str]:
    lines = [entry.describe("the first", "the second") for entry in entries]
    return lines[:most] + [f"and {len(lines) - most} more"] * (len(lines) > most)


def _images(roots: tuple[Path, Path], run: ReproductionRun) -> Iterator[Compared]:
    """What was in the images, by tag, where the records of both places say so: each engine builds its own of a tag."""
    first, second = (
        {
            str(record.parameters.get("image")): str(record.internal["image_contents"])
            for name, _ in names(run, root)
            if (record := records.read(root / record_of(PurePosixPath(name.replace(LATEST, "")))))
            and "image_contents" in record.internal
        }
        for root in roots
    )
    for tag in sorted({*first} & {*second}):
        yield Compared(f"contents of {tag}", (f"sha256  {first[tag]}", f"sha256  {second[tag]}"), must=False)
