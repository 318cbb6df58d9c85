"""bench: the engines to compare. Each runs in a process of its own, which imports only what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import batching
from benchmarks.batching import Array, RowBatch
from deberta.core.contract import BF16, FP32, INPUTS, INT8, OUTPUT
from deberta.stages import onnx_runtime

# The files of a run's folder.
HF = "hf"  # transformers' own layout
GUIDE = "guide.onnx"
HF_EXPORT = "hf_export/model.onnx"
OV_EXPORT = "hf_export/openvino_model.xml"  # optimum-intel's
SUMMARY = "models.json"  # what benchmarks.models writes about the models
# How an engine puts rows of real lengths into batches, see benchmarks.batching.
AS_THEY_COME, BY_LENGTH, BY_BUCKET = "as they come", "by length", "by bucket"

Logits = npt.NDArray[np.float32]


def ours_onnx(fixed: bool) -> str:
    """Ours for 256 tokens, or for any length up to that."""
    return "ours.onnx" if fixed else "ours_any.onnx"


def ours_xml(batch_size: int, fixed: bool, precision: str = FP32) -> str:
    lower = "" if precision == FP32 else f"_{precision}"
    return f"cpu/ours_bs{batch_size}{lower}.xml" if fixed else f"cpu/ours_bs{batch_size}_any{lower}.xml"


def quantized_onnx(fixed: bool) -> str:
    """Our graph as ONNX Runtime quantizes it."""
    return "ort_int8.onnx" if fixed else "ort_int8_any.onnx"


def floor_onnx(batch_size: int, fixed: bool) -> str:
    return f"floor_bs{batch_size}.onnx" if fixed else f"floor_bs{batch_size}_any.onnx"


@dataclass(frozen=True)
class BenchJob:
    """An engine, its model in `folder`, and the rows that it runs. `fixed`: all rows have 256 tokens.

    `buckets`: the lengths at which the cpu backend runs them.
    """

    engine: str
    folder: str
    threads: int
    batch_size: int
    fixed: bool
    lengths: tuple[int, ...]
    buckets: tuple[int, ...]
    vocabulary: int

    @property
    def batches(self) -> list[RowBatch]:
        order = ENGINES[self.engine].batching
        if self.fixed or order == AS_THEY_COME:
            return batching.as_they_come(self.lengths, self.batch_size)
        if order == BY_LENGTH:
            return batching.by_length(self.lengths, self.batch_size)
        return batching.by_bucket(self.lengths, self.batch_size, self.buckets)

    def file(self, name: str) -> Path:
        return Path(self.folder, name)


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that can run. `prepare` is not timed; `run`, from its result to logits [batch size, 3], is."""

    prepare: Callable[[RowBatch, Array, Array], Any]
    run: Callable[[Any], Logits]
    facts: Callable[[], dict[str, Any]] = field(default=dict)  # called after the last pass


@dataclass(frozen=True)
class BenchEngine:
    """`how` is shown in the report; `batching` is that of rows of real lengths; `exact`: it computes the logits.

    `precision` other than fp32: its logits and labels may differ from the reference's, and are shown, not judged.
    """

    label: str
    how: str
    load: Callable[[BenchJob], LoadedEngine]
    batching: str
    exact: bool = True
    precision: str = FP32


def _filled(batch: RowBatch, rows: int, ids: Array, mask: Array) -> list[Array]:
    return [batching.fill(values, batch, rows) for values in (ids, mask)]


def _load_ours(job: BenchJob) -> LoadedEngine:
    """The cpu backend's own model, loaded and run as its stages do: for 256 tokens, or for all lengths."""
    from deberta.stages.inference import openvino_engine

    xml = job.file(ours_xml(job.batch_size, job.fixed, ENGINES[job.engine].precision))
    engine = openvino_engine.load_model(xml, job.threads)
    request = engine.compiled.create_infer_request()
    openvino_engine.release_pages(xml.with_suffix(".bin"))

    def run(inputs: list[Array]) -> Logits:
        for name, values in zip(INPUTS, inputs, strict=True):
            openvino_engine.set_input(request, name, values)
        request.infer(share_outputs=True)
        return np.array(request.get_output_tensor(0).data)

    def facts() -> dict[str, Any]:
        return {name: openvino_engine.engine_facts(engine)[name] for name in ("precision", "threads")}

    return LoadedEngine(lambda batch, ids, mask: _filled(batch, job.batch_size, ids, mask), run, facts)


def _load_transformers(job: BenchJob, compiled: bool) -> LoadedEngine:
    import torch
    from transformers import DebertaV2ForSequenceClassification

    torch.set_num_threads(job.threads)
    source = job.file(HF)
    model = DebertaV2ForSequenceClassification.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    model.train(False)
    call = torch.compile(model, dynamic=not job.fixed) if compiled else model

    def prepare(batch: RowBatch, ids: Array, mask: Array) -> Any:
        return [torch.from_numpy(values.astype(np.int64)) for values in _filled(batch, len(batch.rows), ids, mask)]

    def run(inputs: Any) -> Logits:
        with torch.inference_mode():
            return np.array(call(input_ids=inputs[0], attention_mask=inputs[1]).logits.numpy())

    def facts() -> dict[str, Any]:
        values: dict[str, Any] = {"precision": str(model.dtype), "threads": torch.get_num_threads()}
        if compiled:
            from torch._dynamo.utils import counters

            values["graphs"] = counters["stats"]["unique_graphs"]
            values["graph_breaks"] = sum(counters["graph_break"].values())
        return values

    return LoadedEngine(prepare, run, facts)


def _load_hf_export(job: BenchJob) -> LoadedEngine:
    """Batch and length are dynamic in this export, and its inputs int64."""
    import onnxruntime

    options = onnxruntime.SessionOptions()  # as open_session's, which refuses the If that this export has
    options.intra_op_num_threads, options.log_severity_level = job.threads, 3
    session = onnxruntime.InferenceSession(str(job.file(HF_EXPORT)), options, providers=["CPUExecutionProvider"])

    def prepare(batch: RowBatch, ids: Array, mask: Array) -> Any:
        filled = (values.astype(np.int64) for values in _filled(batch, len(batch.rows), ids, mask))
        return dict(zip(("input_ids", "attention_mask"), filled, strict=True))

    return LoadedEngine(prepare, lambda inputs: np.asarray(session.run([OUTPUT], inputs)[0]))


def _load_ort_int8(job: BenchJob) -> LoadedEngine:
    """Our graph with its batch fixed, quantized by ONNX Runtime."""
    session = onnx_runtime.open_session(job.file(quantized_onnx(job.fixed)), job.threads, job.batch_size)

    def prepare(batch: RowBatch, ids: Array, mask: Array) -> Any:
        return dict(zip(INPUTS, _filled(batch, job.batch_size, ids, mask), strict=True))

    return LoadedEngine(prepare, lambda inputs: np.asarray(session.run([OUTPUT], inputs)[0]))


def _load_optimum_intel(job: BenchJob, settings: Mapping[str, Any]) -> LoadedEngine:
    """optimum-intel's model with the settings that it gives OpenVINO, in one process without its PyTorch."""
    import openvino as ov

    core = ov.Core()
    own = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads, **settings}
    compiled = core.compile_model(core.read_model(job.file(OV_EXPORT)), "CPU", own)
    request, names = compiled.create_infer_request(), {port.any_name for port in compiled.inputs}

    def prepare(batch: RowBatch, ids: Array, mask: Array) -> Any:
        filled = [values.astype(np.int64) for values in _filled(batch, len(batch.rows), ids, mask)]
        inputs = dict(zip(("input_ids", "attention_mask"), filled, strict=True))
        return {**inputs, **({"token_type_ids": filled[1] * 0} if "token_type_ids" in names else {})}

    def run(inputs: Any) -> Logits:
        request.infer(inputs, share_inputs=True, share_outputs=True)
        return np.array(request.get_output_tensor(0).data)

    def facts() -> dict[str, Any]:
        return {"precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()}

    return LoadedEngine(prepare, run, facts)


def _load_guide(job: BenchJob) -> LoadedEngine:
    """With a dynamic batch, as exported: for a fixed one ONNX Runtime folds more indices, and is slower."""
    session = onnx_runtime.open_session(job.file(GUIDE), job.threads)

    def prepare(batch: RowBatch, ids: Array, mask: Array) -> Any:
        return dict(zip(INPUTS, _filled(batch, job.batch_size, ids, mask), strict=True))

    return LoadedEngine(prepare, lambda inputs: np.asarray(session.run([OUTPUT], inputs)[0]))


def _load_floor(job: BenchJob) -> LoadedEngine:
    """On OpenVINO with the cpu backend's settings, in the shapes of its batches."""
    import openvino as ov

    from benchmarks import floor
    from deberta.stages.inference import openvino_engine

    core = ov.Core()
    model = core.read_model(job.file(floor_onnx(job.batch_size, job.fixed)))
    hidden = model.inputs[0].get_partial_shape()[1].get_length()
    request = core.compile_model(model, "CPU", openvino_engine.engine_settings(job.threads)).create_infer_request()

    def prepare(batch: RowBatch, ids: Array, mask: Array) -> Any:
        values = floor.inputs(job.batch_size, batch.length, hidden)
        return {name: ov.Tensor(array, shared_memory=True) for name, array in values.items()}

    def run(tensors: Any) -> Logits:
        for name, tensor in tensors.items():
            request.set_tensor(name, tensor)
        request.infer(share_outputs=True)
        return np.array(request.get_output_tensor(0).data)

    return LoadedEngine(prepare, run)


def _load_floor_ort(job: BenchJob) -> LoadedEngine:
    from benchmarks import floor

    session = onnx_runtime.open_session(job.file(floor_onnx(job.batch_size, job.fixed)), job.threads)
    hidden = session.get_inputs()[0].shape[1]
    return LoadedEngine(
        lambda batch, ids, mask: floor.inputs(job.batch_size, batch.length, hidden),
        lambda inputs: np.asarray(session.run(None, inputs)[0]),
    )


MAX_THREADS = 1024
OURS, REFERENCE = "ours", "eager"
OURS_BF16, OURS_INT8, ORT_INT8 = "ours-bf16", "ours-int8", "ort-int8"
ENGINES = {
    OURS: BenchEngine(
        "deberta-ascend, cpu backend",
        "our graph on OpenVINO in float32, as `build-om` and `infer` make and run it on a CPU",
        _load_ours,
        BY_BUCKET,
    ),
    REFERENCE: BenchEngine(
        "transformers, eager",
        "the model that `from_pretrained` gives, in inference mode",
        lambda job: _load_transformers(job, compiled=False),
        BY_LENGTH,
    ),
    "compile": BenchEngine(
        "transformers, torch.compile",
        "the same under `torch.compile`, with dynamic shapes for real lengths alone",
        lambda job: _load_transformers(job, compiled=True),
        BY_LENGTH,
    ),
    "hf-export": BenchEngine(
        "Hugging Face's export on ONNX Runtime",
        "what `optimum-cli export onnx` (optimum-onnx) makes, run by ONNX Runtime itself",
        _load_hf_export,
        BY_LENGTH,
    ),
    "optimum-intel": BenchEngine(
        "optimum-intel, OpenVINO in float32",
        "what optimum-intel's `OVModelForSequenceClassification` loads and runs (export=True), told to use float32",
        lambda job: _load_optimum_intel(job, {"INFERENCE_PRECISION_HINT": "f32"}),
        BY_LENGTH,
    ),
    "optimum-intel-default": BenchEngine(
        "optimum-intel, as it comes",
        "the same in OpenVINO's default precision, which is bf16 on a CPU that has it",
        lambda job: _load_optimum_intel(job, {}),
        BY_LENGTH,
        precision="the default",
    ),
    "guide": BenchEngine(
        "the guide's form on ONNX Runtime",
        "the guide's graph (2 GatherElements by int64 indices per layer, a mask of -inf)",
        _load_guide,
        AS_THEY_COME,
    ),
    "floor": BenchEngine(
        "matrix products alone, OpenVINO",
        "our graph's matrix products and nothing else, with constant weights",
        _load_floor,
        BY_BUCKET,
        exact=False,
    ),
    "floor-ort": BenchEngine(
        "matrix products alone, ONNX Runtime",
        "the same products on ONNX Runtime",
        _load_floor_ort,
        BY_BUCKET,
        exact=False,
    ),
    OURS_BF16: BenchEngine(
        "deberta-ascend, cpu backend, bf16",
        "the same as ours from `build-om --precision bf16`",
        _load_ours,
        BY_BUCKET,
        precision=BF16,
    ),
    OURS_INT8: BenchEngine(
        "deberta-ascend, cpu backend, int8",
        "the same as ours from `build-om --precision int8`",
        _load_ours,
        BY_BUCKET,
        precision=INT8,
    ),
    ORT_INT8: BenchEngine(
        "our graph in ONNX Runtime's dynamic int8",
        "our graph as `onnxruntime.quantization.quantize_dynamic` quantizes it by default, run by ONNX Runtime",
        _load_ort_int8,
        BY_BUCKET,
        precision=INT8,
    ),
}
