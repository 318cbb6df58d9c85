"""A report's job: all that the host knows of what was measured, for the stages that turn it into report.json.

It names every file by its path in the workspace; the stages read nothing that it does not name. What depends on the
machine, on times and on tools is in `measured`. The gates are those of one profile, from a TOML file.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Iterator, Optional

from msgspec import Meta, field

from deberta.core import contract, schema
from deberta.core.schema import Schema, one_of

FORMAT = 1  # of a job and of a report
Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")]
Digest = Annotated[
    dict[Annotated[str, Meta(pattern="^(sha256|dirHash)$")], schema.Sha256],
    Meta(
        description="sha256 of a file; dirHash of a folder: SHA-256 over its sorted lines `<sha256>  <path>\\n`.",
        min_length=1,
        max_length=1,
    ),
]
Digests = Annotated[
    dict[Annotated[str, Meta(pattern="^[^/]")], Digest], Meta(description="By path, relative to the workspace.")
]
Margin = Annotated[float, Meta(ge=0, le=1e6)]  # an upper bound refuses infinity, and any bound NaN
Paths = dict[schema.Version, schema.Text]
PathsByLength = dict[schema.Number, schema.Text]


class HostFacts(Schema):
    system: str
    python: str
    cpu: str
    cpus: schema.Positive
    name: str


class PinFacts(Schema):
    pinned: bool
    notes: list[str]


class StepFacts(Schema):
    """image: empty if it ran in none."""

    step: schema.Text
    executor: str
    image: str
    started: Time
    finished: Time
    seconds: schema.NonNegative


class DeviceFacts(Schema, kw_only=True):
    """A device that ran shards of an accuracy run. What could not be read is empty, which is equal to nothing.

    device: npu-smi's column Device; on cpu the number of a process. chip: npu-smi's name; on cpu the CPU's model.
    driver: npu-smi's version. program: what runs the model, as executors identify it (msame's SHA-256, the stages'
    packages, an image's tag). code: the digest of our own package. machine: as `uname -m` calls it. image: the digest
    of the content of the image whose tag `program` has.
    """

    host: schema.Text
    device: schema.Count
    chip: str = ""
    cann: str = ""
    driver: str = ""
    program: dict[str, str] = field(default_factory=dict)
    code: str = ""
    machine: str = ""
    image: str = ""

    @property
    def name(self) -> str:
        """HOST/DEVICE, as a device is called everywhere."""
        return f"{self.host}/{self.device}"


class Shard(Schema):
    """Whole batches of an accuracy run, `first` to `last` by input index, both of them among it, that one device ran.

    device: HOST/DEVICE. digest: SHA-256 over the sorted lines `<sha256>  <name>\\n` of its output files.
    started, finished: by the clock of the host that placed it.
    """

    length: schema.Count
    first: schema.Count
    last: schema.Count
    device: schema.Text
    digest: schema.Sha256
    started: Time
    finished: Time
    inference_ms: schema.NonNegative = 0.0


class LostAttempt(Schema):
    """A shard that was begun and does not count: its device went, its time ran out, or its run failed."""

    length: schema.Count
    first: schema.Count
    last: schema.Count
    device: schema.Text
    why: str
    at: Time


class SameBatch(Schema):
    """A batch that several devices ran, and whether all gave the same bytes."""

    length: schema.Count
    batch: schema.Count
    devices: list[schema.Text]
    same: bool


class Sharding(Schema):
    """An accuracy run's shards. engine: what placed them; empty for this host's own processes.

    different: devices that differ were allowed, which leaves `accepted` out of reach. not_checked: sentences on what
    could not be compared.
    """

    devices: list[DeviceFacts]
    shards: list[Shard]
    lost: list[LostAttempt] = field(default_factory=list)
    compared: list[SameBatch] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    different: bool = False
    engine: str = ""


class DeviceShare(DeviceFacts, kw_only=True):
    """What a device did of one accuracy run. seconds: from start to end of its shards; inference_ms: in the model."""

    shards: schema.Count
    batches: schema.Count
    seconds: schema.NonNegative
    inference_ms: schema.NonNegative


class ShardedRun(Schema):
    """An accuracy run of several devices, summed up from its record, which has each shard; `verify` compares both.

    lengths: those of the run. compared: how many batches ran on several devices; unlike: those of them that gave other
    bytes. The other fields are as of Sharding.
    """

    batch_size: schema.BatchSize
    version: schema.Version
    precision: schema.Precision
    lengths: list[schema.Positive]
    devices: list[DeviceShare]
    lost: list[LostAttempt]
    compared: schema.Count
    unlike: list[SameBatch]
    not_checked: list[str]
    different: bool
    engine: str


class CellPlace(Schema):
    """pinned: false if a step on the way ran in an image, or with a tool, that docker/pins.toml does not name.

    not_checked: what of the device could not be looked at before the run, or of the model beside it.
    """

    place: schema.Text
    pinned: bool
    not_checked: list[schema.Text] = field(default_factory=list)


class JobMeasured(Schema, kw_only=True):
    """What the host knows of the tools, times (ISO 8601 with the offset from UTC) and machine.

    deberta_ascend: this project's version. loops: requested of a performance run. tools: version or SHA-256 of each,
    empty where it took no part. artifacts: not the same bytes on every machine. places: where each evaluation of the
    body was made, by bs<N>_<version>, or bs<N>_<precision>_<version>. sharded: accuracy runs of several devices.
    """

    finished: Time = field(name="made")  # the last step
    deberta_ascend: schema.Text
    command: schema.Text
    executor: Annotated[str, one_of(contract.EXECUTORS)]
    loops: schema.Count
    host: HostFacts
    pins: PinFacts
    tools: dict[str, str]
    engines: list[str]
    steps: list[StepFacts]
    artifacts: Digests
    places: dict[Annotated[str, Meta(pattern=r"^bs[1-9]\d*(_int8|_bf16)?_(match|mismatch)$")], CellPlace]
    sharded: list[ShardedRun] = field(default_factory=list)


class PublishedRow(Schema):
    """A row of the guide's table; accuracies in percent, throughput in samples per second."""

    batch_size: schema.BatchSize
    baseline_fps: float
    ascend_fps: float
    official_match: float
    official_mismatch: float
    ascend_match: float
    ascend_mismatch: float


class ExpectedRows(Schema):
    """Rows of one version that are right, less the number that may be wrong, of all its rows."""

    expected: schema.Count
    allowed: schema.Count
    of: schema.Count

    def __post_init__(self) -> None:
        if not self.allowed <= self.expected <= self.of:
            raise ValueError(f"allowed {self.allowed}, expected {self.expected}, of {self.of} do not increase")


class OfficialGate(Schema):
    """Percentage points."""

    points: Annotated[float, Meta(ge=0, le=100)]


class AllowedRows(Schema):
    allowed: schema.Count


class FpsGate(Schema):
    at_least: Annotated[str, Meta(pattern="^(baseline|ascend)$")]  # a column of the published table


class SentinelGate(Schema):
    """Nothing to set."""


class VersionRows(Schema, omit_defaults=True):
    match: Optional[ExpectedRows] = None
    mismatch: Optional[ExpectedRows] = None


class Gates(Schema, omit_defaults=True):
    """What a profile's runs must meet; a gate that is absent is not judged."""

    near_tie_margin: Optional[Margin] = None  # of two gates, and none itself
    official: Optional[OfficialGate] = None
    agreement: Optional[AllowedRows] = None
    reference: Optional[AllowedRows] = None
    fps: Optional[FpsGate] = None
    sentinel: Optional[SentinelGate] = None
    correct_rows: Optional[VersionRows] = None
    inputs: Optional[dict[str, schema.Sha256]] = None

    def __post_init__(self) -> None:
        for name in self.inputs or ():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name:
                raise ValueError(f"inputs names {name!r}, which is no path in the workspace as records have it")


class JobProfile(Schema):
    name: schema.Text
    published: bool
    labels: Annotated[list[schema.Label], Meta(min_length=3, max_length=3)]
    rows: dict[schema.Version, Optional[int]]


class FigureFiles(Schema):
    """origin: empty for the present model, else what stands behind the figure in its place."""

    batch_size: schema.BatchSize
    version: schema.Version
    origin: str


class RunFiles(FigureFiles):
    precision: schema.Precision
    pinned: bool
    place: schema.Text


class EvaluationFiles(RunFiles):
    """One evaluation; its text is `evaluation`, its counts are in the .json of the same name.

    `predictions`: what the logits say of each row; empty if the evaluation has no such file.

    `outputs` are by sequence length, and so are `bins`, the folders with order.json: empty for 256 alone, whose rows
    are in the tsv's order.
    """

    outputs: PathsByLength
    bins: PathsByLength
    evaluation: schema.Text
    predictions: str = ""
    not_checked: list[schema.Text] = field(default_factory=list)


class PerformanceFiles(RunFiles):
    """The timing log of one performance run. device: HOST/DEVICE, where its record names it; else empty."""

    length: schema.Positive
    runner: schema.Runner
    log: schema.Text
    device: str = ""
    not_checked: list[schema.Text] = field(default_factory=list)


class ThroughputFiles(RunFiles):
    """What several lengths come to over the data: the throughput stage's file, and what it was made of."""

    throughput: schema.Text
    logs: PathsByLength
    tokens: schema.Text
    not_checked: list[schema.Text] = field(default_factory=list)


class LabelChangeFiles(FigureFiles):
    """The label-changes stage's file on a run of a lower precision, and the outputs that it compared."""

    precision: schema.Precision
    label_changes: schema.Text
    fp32: PathsByLength
    lower: PathsByLength
    bins: PathsByLength


class Job(Schema):
    """on_devices: performance runs of further devices, to be held against `performances` and nothing else."""

    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    purpose: Annotated[str, Meta(pattern="^(acceptance|report)$")]
    profile: JobProfile
    backend: schema.Backend
    limit: schema.Count
    loops: schema.Count
    batch_sizes: list[schema.BatchSize]
    versions: list[schema.Version]
    data: Paths
    sentinels: Paths
    references: Paths
    cells: list[EvaluationFiles]
    performances: list[PerformanceFiles]
    throughputs: list[ThroughputFiles]
    label_changes: list[LabelChangeFiles]
    inputs: Digests
    artifacts: Digests
    gates: Gates
    published: list[PublishedRow]
    note: str
    not_accepted: list[schema.Text]
    measured: JobMeasured
    on_devices: list[PerformanceFiles] = field(default_factory=list)
    auto: list[str] = field(default_factory=list)  # what was left to it, of backend and executor
    language: Annotated[str, one_of(contract.LANGUAGES)] = contract.LANGUAGES[0]  # of report.md and report.html
    baseline: str = ""  # the file of what differs between the report and its baseline

    def __post_init__(self) -> None:
        cells = [(cell.batch_size, cell.version, cell.precision) for cell in self.cells]
        runs = [(run.batch_size, run.version, run.precision, run.length, run.runner) for run in self.performances]
        devices = [
            (run.batch_size, run.version, run.precision, run.length, run.runner, run.device)
            for run in (*self.performances, *self.on_devices)
        ]
        for name, places in (("cells", cells), ("performances", runs), ("runs on devices", devices)):
            if len(set(places)) < len(places):
                raise ValueError(f"it names one of its {name} twice")

    def figures(self) -> Iterator[tuple[list[str], dict[str, str], str, FigureFiles]]:
        """The files that each figure rests on, those of each length, the precision of its run, and the figure."""
        for cell in self.cells:
            names = [cell.evaluation, *filter(None, [cell.predictions]), *cell.outputs.values(), *cell.bins.values()]
            yield names, cell.outputs, cell.precision, cell
        for run in (*self.performances, *self.on_devices):
            yield [run.log], {str(run.length): run.log}, run.precision, run
        for result in self.throughputs:
            yield [result.throughput, result.tokens, *result.logs.values()], result.logs, result.precision, result
        for changes in self.label_changes:
            names = [changes.label_changes, *changes.fp32.values(), *changes.lower.values()]
            yield names, changes.lower, changes.precision, changes
