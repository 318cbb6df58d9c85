"""The one vocabulary of paths, relative to the workspace: a command reads the same on the host and in a container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath as Path

from deberta.core import contract
from deberta.core.contract import FP32, SEQUENCE_LENGTH

ACCEPTANCES = "acceptances"  # a folder in results: each in it is like a workspace
RECORD_SUFFIX = ".record.json"


def record_of(artifact: Path) -> Path:
    """The record beside an artifact (a file or a folder)."""
    return artifact.with_name(artifact.name + RECORD_SUFFIX)


def limited(name: str, limit: int) -> str:
    """A run over the first rows only never shares a name with a whole one."""
    return f"{name}_limit{limit}" if limit else name


@dataclass(frozen=True)
class Artifacts:
    """Artifact paths of one profile and backend. `limit` > 0: a run over the first `limit` rows.

    `bucketed`: rows run at several lengths, or at one below 256; these are the paths of `length`. Its rows and figures
    are not those of the padded run, so their names have the length also at 256; models of 256 are the padded run's own.
    The cpu backend's one model for all lengths has none in its name. `precision`, where it is not fp32, is of that
    model and its runs. `scratch`: a folder in which all but models lies, and which is removed at the end.
    """

    profile: str
    backend: str = "cpu"
    limit: int = 0
    length: int = SEQUENCE_LENGTH
    bucketed: bool = False
    precision: str = FP32
    scratch: str = ""

    @property
    def models(self) -> Path:
        return Path("models", self.profile)

    @property
    def data(self) -> Path:
        return Path(self.scratch, "data") if self.scratch else Path("data", self.profile)

    @property
    def results(self) -> Path:
        return Path(self.scratch, "results") if self.scratch else Path("results", self.profile, self.backend)

    @property
    def onnx(self) -> Path:
        if self._any_length:
            return self.models / self.backend / "dynamic_lengths.onnx"
        return self.models / f"dynamic{self._of_length}.onnx"

    @property
    def finetune_state(self) -> Path:
        """Where a stopped training run goes on from."""
        return self.models / "finetune.state"

    def compiled(self, batch_size: int) -> Path:
        """A file named .om is always ATC's; the cpu backend's is an OpenVINO model (.xml, weights in .bin)."""
        suffix = "om" if self.backend == "ascend" else "xml"
        length = "_lengths" if self._any_length else self._of_length
        return self.models / self.backend / f"deberta_bs{batch_size}{length}{self._of_precision}.{suffix}"

    def of_user(self, origin: str, batch_size: int, version: str) -> list[Path]:
        """What of the user's own a figure of this origin was measured with."""
        places = {".om": self.compiled(batch_size), "ONNX": self.onnx, "bins": self.bins(batch_size, version)}
        return [places[part] for part in contract.supplied_parts(origin) if part in places]

    def token_counts(self, version: str) -> Path:
        """How many rows have how many tokens."""
        return self.data / f"{limited('tokens', self.limit)}_{version}.json"

    def bins(self, batch_size: int, version: str) -> Path:
        return self.data / limited(self._named("pre_mnli", batch_size), self.limit) / version

    def outputs(self, batch_size: int, version: str) -> Path:
        return self.results / f"{limited(self._run('outputs', batch_size), self.limit)}_om" / version

    def performance(self, batch_size: int, version: str, device: str = "") -> Path:
        """`device`: HOST/DEVICE, of a run beside the first device's."""
        return self.results / f"{self._run('perf', batch_size)}_om" / f"{version}{_of_device(device)}"

    def evaluation(self, batch_size: int, version: str) -> Path:
        """The guide's accuracy text, whatever the lengths; exact counts are in the .json of the same name."""
        return self.results / f"{limited(f'eval_bs{batch_size}{self._of_precision}', self.limit)}_{version}.txt"

    def predictions(self, batch_size: int, version: str) -> Path:
        """What the evaluation's logits say of each row, one JSON line for each."""
        name = limited(f"predictions_bs{batch_size}{self._of_precision}", self.limit)
        return self.results / f"{name}_{version}.jsonl"

    def label_changes(self, batch_size: int, version: str) -> Path:
        """A run of a lower precision beside the float32 one."""
        return self.results / f"{limited(f'{self.precision}_bs{batch_size}', self.limit)}_{version}.json"

    def timing_log(self, batch_size: int, version: str, runner: str = "msame") -> Path:
        """What msame printed, or the summary that ais_bench wrote."""
        suffix = "txt" if runner == "msame" else "json"
        return self.results / f"{self._run(runner, batch_size)}_{version}.{suffix}"

    def device_log(self, batch_size: int, version: str, device: str, runner: str = "msame") -> Path:
        """The timing log of a further device, HOST/DEVICE: its figure stands beside those of other devices alone."""
        log = self.timing_log(batch_size, version, runner)
        return log.with_name(f"{log.stem}{_of_device(device)}{log.suffix}")

    def lint(self, batch_size: int) -> Path:
        """What lint-onnx found before a compilation."""
        return self.results / f"{self._named('lint', batch_size)}.json"

    def check_fp16(self, batch_size: int, version: str) -> Path:
        """The fp16 gate's report; it is of the graph, whatever backend runs it."""
        return self.results.parent / f"{limited(self._named('check-fp16', batch_size), self.limit)}_{version}.json"

    def keep_dtype(self, batch_size: int, version: str) -> Path:
        """Nodes to keep in float32, for ATC's --keep_dtype; there only if some overflow."""
        return self.results.parent / f"{limited(self._named('keep_dtype', batch_size), self.limit)}_{version}.txt"

    def throughput(self, batch_size: int, version: str) -> Path:
        """What the timing logs of all lengths of a bucketed run come to."""
        return self.results / f"perf_bs{batch_size}{self._of_precision}_{version}_buckets.json"

    def reference(self, version: str) -> Path:
        """PyTorch's logits of all rows, float32 [rows, 3]; they are of the checkpoint, whatever backend runs it."""
        return self.results.parent / f"{limited('reference', self.limit)}_{version}.npy"

    def data_check(self, version: str) -> Path:
        """What a look at the data itself shows."""
        return self.results.parent / f"{limited('data_check', self.limit)}_{version}.json"

    def job(self) -> Path:
        """What the report is made of, as the host found it."""
        return self.results / f"{limited('report_job', self.limit)}.json"

    def report(self, suffix: str = "md") -> Path:
        return self.results / f"{limited('report', self.limit)}.{suffix}"

    def baseline(self) -> Path:
        """What differs between the report and its baseline, if it has one."""
        return self.results / f"{limited('baseline', self.limit)}.json"

    @property
    def pages(self) -> list[Path]:
        """A report's own files, beside its job: all of these are signed."""
        return [*map(self.report, ("json", "md", "html")), self.bom()]

    def attestation(self) -> Path:
        """The signature of a report and of all that it stands on."""
        return self.results / f"{limited('report', self.limit)}.dsse.json"

    def bom(self) -> Path:
        """The bill of materials: a CycloneDX ML-BOM."""
        return self.results / f"{limited('bom', self.limit)}.cdx.json"

    def log(self, step: str) -> Path:
        return self.results / "logs" / f"{step}.log"

    def _named(self, what: str, batch_size: int) -> str:
        return f"{what}_bs{batch_size}{f'_s{self.length}' if self.bucketed else self._of_length}"

    def _run(self, what: str, batch_size: int) -> str:
        """The name of something that the compiled model made."""
        return self._named(what, batch_size) + self._of_precision

    @property
    def _of_precision(self) -> str:
        return "" if self.precision == FP32 else f"_{self.precision}"

    @property
    def _any_length(self) -> bool:
        return self.bucketed and self.backend == "cpu"

    @property
    def _of_length(self) -> str:
        return "" if self.length == contract.SEQUENCE_LENGTH else f"_s{self.length}"


def _of_device(device: str) -> str:
    return f".device-{device.replace('/', '-')}" if device else ""
