"""The one vocabulary of paths, relative to the workspace: a command reads the same on the host and in a container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath as Path

from deberta import contract
from deberta.contract import SEQUENCE_LENGTH


def record_of(artifact: Path) -> Path:
    """The record beside an artifact (a file or a folder)."""
    return artifact.with_name(artifact.name + ".record.json")


def limited(name: str, limit: int) -> str:
    """A run over the first rows only never shares a name with a whole one."""
    return f"{name}_limit{limit}" if limit else name


@dataclass(frozen=True)
class Artifacts:
    """Artifact paths of one profile and backend. `limit` > 0: a run over the first `limit` rows.

    `buckets`: what belongs to `length` in a bucketed run. Its rows and figures are not those of the padded run, so
    their names have the length also at 256; models of 256 are the padded run's own. The cpu backend's one model for
    all lengths is named for none.
    """

    profile: str
    backend: str = "cpu"
    limit: int = 0
    length: int = SEQUENCE_LENGTH
    buckets: bool = False

    @property
    def models(self) -> Path:
        return Path("models", self.profile)

    @property
    def data(self) -> Path:
        return Path("data", self.profile)

    @property
    def results(self) -> Path:
        return Path("results", self.profile, self.backend)

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
        return self.models / self.backend / f"deberta_bs{batch_size}{length}.{suffix}"

    def token_counts(self, version: str) -> Path:
        """How many rows have how many tokens."""
        return self.data / f"{limited('tokens', self.limit)}_{version}.json"

    def bins(self, batch_size: int, version: str) -> Path:
        return self.data / limited(self._named("pre_mnli", batch_size), self.limit) / version

    def outputs(self, batch_size: int, version: str) -> Path:
        return self.results / f"{limited(self._named('outputs', batch_size), self.limit)}_om" / version

    def performance(self, batch_size: int, version: str) -> Path:
        return self.results / f"{self._named('perf', batch_size)}_om" / version

    def evaluation(self, batch_size: int, version: str) -> Path:
        """The guide's accuracy text; exact counts are in the .json of the same name."""
        if self.buckets:  # of all lengths together
            return self.results / f"{limited(f'eval_bs{batch_size}', self.limit)}_{version}_buckets.txt"
        return self.results / f"{limited(self._named('eval', batch_size), self.limit)}_{version}.txt"

    def timing_log(self, batch_size: int, version: str, runner: str = "msame") -> Path:
        """What msame printed, or the summary that ais_bench wrote."""
        suffix = "txt" if runner == "msame" else "json"
        return self.results / f"{self._named(runner, batch_size)}_{version}.{suffix}"

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
        return self.results / f"perf_bs{batch_size}_{version}_buckets.json"

    def report(self, suffix: str = "md") -> Path:
        return self.results / f"report.{suffix}"

    def log(self, step: str) -> Path:
        return self.results / "logs" / f"{step}.log"

    def _named(self, what: str, batch_size: int) -> str:
        return f"{what}_bs{batch_size}{f'_s{self.length}' if self.buckets else self._of_length}"

    @property
    def _any_length(self) -> bool:
        return self.buckets and self.backend == "cpu"

    @property
    def _of_length(self) -> str:
        return "" if self.length == contract.SEQUENCE_LENGTH else f"_s{self.length}"
