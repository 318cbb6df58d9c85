"""bench: prepares the models, in processes of their own, in a temporary folder of the workspace."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deberta
from benchmarks import processes
from benchmarks.engines import (
    ENGINES,
    HF,
    HF_EXPORT,
    ORT_INT8,
    OURS,
    OURS_BF16,
    OURS_INT8,
    SUMMARY,
    BenchJob,
    ours_onnx,
    ours_xml,
    quantized_onnx,
)
from benchmarks.figures import INSTALL
from deberta.core.errors import MissingError, StageError

OF_PEERS = ("hf-export", "optimum-intel", "optimum-intel-default")  # what the peers' environment exports
PEERS = Path(".venv-bench", "bin", "python")
QUANTIZE = "import sys; from onnxruntime.quantization import quantize_dynamic; quantize_dynamic(*sys.argv[1:])"


@dataclasses.dataclass(frozen=True)
class BenchCase:
    """One table of the report."""

    batch_size: int
    fixed: bool
    lengths: tuple[int, ...]
    buckets: tuple[int, ...]

    @property
    def title(self) -> str:
        return f"{'256 tokens' if self.fixed else 'Real lengths'}, batch size {self.batch_size}"

    def job(self, engine: str, folder: Path, threads: int, vocabulary: int) -> BenchJob:
        rows = (self.batch_size, self.fixed, self.lengths, self.buckets)
        return BenchJob(engine, str(folder), threads, *rows, vocabulary)


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    engines: tuple[str, ...]
    threads: int
    repeats: int
    seed: int
    size: str
    config: Path | None
    checkpoint: Path | None
    labels: tuple[str, ...]
    peers: Path
    logs: Path

    @property
    def real_repeats(self) -> int:
        """At real lengths one turn is many batches."""
        return max(3, (self.repeats + 1) // 2)


@contextlib.contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A folder of this run alone, removed at the end; first the folders of killed runs are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob("run-*"):
        with contextlib.suppress(ValueError):
            if not Path("/proc", str(int(leftover.name.split("-")[1]))).exists():
                shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def variables(settings: BenchSettings, folder: Path) -> dict[str, str]:
    """The same threads for every process, no downloads, and torch.compile's files inside the run's folder."""
    return {
        **os.environ,
        "PYTHONPATH": str(deberta.PROJECT),
        "OMP_NUM_THREADS": str(settings.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


def prepare(
    settings: BenchSettings, cases: Sequence[BenchCase], folder: Path
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Make the models; returns their description, engines without one (with the reason), and the peers' packages."""
    absent: dict[str, str] = {}
    models = {
        "engines": settings.engines, "cases": [(case.batch_size, case.fixed) for case in cases], "seed": settings.seed,
        "threads": settings.threads,
        "config": str(settings.config or ""), "checkpoint": str(settings.checkpoint or ""), "labels": settings.labels,
    }  # fmt: skip
    print("making the models", flush=True)
    command = [sys.executable, "-m", "benchmarks.models", "--folder", str(folder)]
    command += ["--job", json.dumps(models)]
    processes.finish(command, variables(settings, folder), settings.logs / "models.log")
    model = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    random = f"random (size {settings.size}, seed {settings.seed})"
    model["weights"] = str(settings.checkpoint) if settings.checkpoint else random
    _compile(settings, cases, folder, OURS)
    for name in (OURS_BF16, OURS_INT8, ORT_INT8):
        if name in settings.engines:
            make = _quantize if name == ORT_INT8 else _compile
            try:
                make(settings, cases, folder, name)
            except StageError as error:
                absent[name] = str(error)
                print(f"not measured: {name}: {error}", flush=True)
    versions: dict[str, str] = {}
    if exported := [name for name in OF_PEERS if name in settings.engines]:
        target = folder / HF_EXPORT
        try:
            versions = _export_peer(settings, folder, target.parent)
        except (MissingError, StageError) as error:
            absent.update(dict.fromkeys(exported, str(error)))
            print(f"not measured: {', '.join(exported)}: {error}", flush=True)
    return model, absent, versions


def _compile(settings: BenchSettings, cases: Sequence[BenchCase], folder: Path, engine: str) -> None:
    """Make the cpu backend's own models in the engine's precision, as build-om does. Raises StageError."""
    print(f"compiling {engine}", flush=True)
    precision = ENGINES[engine].precision
    for case in cases:
        onnx, xml = folder / ours_onnx(case.fixed), folder / ours_xml(case.batch_size, case.fixed, precision)
        command = [sys.executable, "-m", "deberta.stages.compile.compile_cpu", "--bs", str(case.batch_size)]
        command += ["--threads", str(settings.threads), "--model", str(onnx), "--output", str(xml)]
        command += ["--precision", precision, *([] if case.fixed else ["--any-length"])]
        processes.finish(command, variables(settings, folder), settings.logs / f"compile_{engine}.log")


def _quantize(settings: BenchSettings, cases: Sequence[BenchCase], folder: Path, engine: str) -> None:
    """Make ONNX Runtime's dynamic int8 of our graphs; they hold every batch size. Raises StageError."""
    print(f"quantizing {engine}", flush=True)
    for fixed in sorted({case.fixed for case in cases}):
        command = [sys.executable, "-c", QUANTIZE, str(folder / ours_onnx(fixed)), str(folder / quantized_onnx(fixed))]
        processes.finish(command, variables(settings, folder), settings.logs / f"compile_{engine}.log")


def _export_peer(settings: BenchSettings, folder: Path, target: Path) -> dict[str, str]:
    if not os.access(settings.peers, os.X_OK):
        raise MissingError(f"{settings.peers}, with optimum-onnx, is missing. Run: {INSTALL}")
    print("making Hugging Face's export", flush=True)
    command = [str(settings.peers), "-m", "benchmarks.hf_export", str(folder / HF), str(target)]
    processes.finish(command, variables(settings, folder), settings.logs / "hf_export.log")
    versions: dict[str, str] = json.loads((target / "versions.json").read_text(encoding="utf-8"))
    return versions
