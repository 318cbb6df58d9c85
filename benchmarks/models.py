"""bench: the models that the engines load, made from one set of weights into one folder, in a process of its own.

benchmarks.engines has their names, models.json describes them. compile_cpu and benchmarks.hf_export make the other
models: OpenVINO does not work in one process with torch, nor optimum-onnx with this transformers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from benchmarks import floor, guide
from benchmarks.engines import GUIDE, HF, SUMMARY, floor_onnx, ours_onnx
from deberta.core import files
from deberta.core.contract import LABELS, SEQUENCE_LENGTH
from deberta.core.errors import run_stage
from deberta.stages.compile import export_onnx
from deberta.stages.model import checkpoint, config

TINY = {
    "vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80,
    "max_position_embeddings": 512, "relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 256,
    "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
    "initializer_range": 0.3,
}  # fmt: skip


def make(
    folder: Path, values: dict[str, Any], trained: tuple[Path, tuple[str, ...]] | None, seed: int,
    engines: Sequence[str], cases: Sequence[tuple[int, bool]],
) -> dict[str, Any]:  # fmt: skip
    """Write the models that `engines` need for these (batch size, whether of 256 tokens); returns their description."""
    settings = config.from_dict(values)
    model = _weights(values, trained, seed)
    model.save_pretrained(folder / HF)
    summary: dict[str, Any] = {"parameters": sum(weight.numel() for weight in model.parameters())}
    if "guide" in engines:
        print("exporting the guide's form", flush=True)
        summary["guide"] = {"nodes": guide.export(model, folder / GUIDE), "folded": _folded(folder / GUIDE)}
    del model
    if "ours" in engines:
        for fixed in sorted({fixed for _, fixed in cases}, reverse=True):
            print("exporting ours for 256 tokens" if fixed else "exporting ours for any length", flush=True)
            loaded = checkpoint.load(folder / HF, settings, LABELS).model
            export_onnx.export(loaded, folder / ours_onnx(fixed), SEQUENCE_LENGTH, any_length=not fixed)
            if fixed:
                summary["ours"] = {"nodes": dict(export_onnx.check_graph(folder / ours_onnx(fixed)).most_common())}
    if "floor" in engines or "floor-ort" in engines:
        summary["floor"] = {}
        for batch_size, fixed in cases:
            path = folder / floor_onnx(batch_size, fixed)
            floor.write(settings, batch_size, SEQUENCE_LENGTH if fixed else 0, path)
            if fixed:
                count, operations = floor.products(path)
                summary["floor"][str(batch_size)] = {"products": count, "operations": operations}
    return summary


def _weights(values: dict[str, Any], trained: tuple[Path, tuple[str, ...]] | None, seed: int) -> Any:
    """transformers' model with random weights, or those of `trained`: a checkpoint and its label order."""
    torch.manual_seed(seed)
    pooling = values.get("pooling", {})  # Microsoft's name for what Hugging Face keeps in two keys
    pooler = {f"pooler_{key}": value for key, value in pooling.items()}
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
    model = DebertaV2ForSequenceClassification(DebertaV2Config.from_dict({**values, **pooler, **labels})).train(False)
    if trained is not None:
        model.load_state_dict(checkpoint.load(trained[0], config.from_dict(values), trained[1]).model.state_dict())
        return model
    _randomise(model)
    return model


def _randomise(model: Any) -> None:
    """Draw weights and biases that give logits of several units and every label, so that errors show in them."""
    wide = 1.4 / math.sqrt(model.config.hidden_size)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm, bias = name.endswith("LayerNorm.weight"), name.endswith("bias")
            weight.normal_(1.0 if norm else 0.0, 0.05 if norm else 0.02 if bias else wide)
        model.classifier.weight.normal_(0.0, 6 * wide)
        ids = torch.randint(1, model.config.vocab_size, (32, 40))
        model.classifier.bias -= model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.mean(dim=0)


def _folded(path: Path) -> dict[str, int]:
    """The nodes by type of a graph for batch size 1 once ONNX Runtime has folded its constants."""
    folded = path.with_name("folded.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_free_dimension_override_by_name("batch", 1)
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(str(folded), load_external_data=False).graph.node]
    for path in folded.parent.glob("folded.onnx*"):
        path.unlink()
    return {name: nodes.count(name) for name in sorted(set(nodes), key=lambda name: (-nodes.count(name), name))}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--job", required=True, help="JSON: engines, cases, seed, threads, config, checkpoint, labels")
    options = parser.parse_args(argv)
    job = json.loads(options.job)
    torch.set_num_threads(job["threads"])
    values = json.loads(Path(job["config"]).read_text(encoding="utf-8")) if job["config"] else TINY
    trained = (Path(job["checkpoint"]), tuple(job["labels"])) if job["checkpoint"] else None
    summary = make(options.folder, values, trained, job["seed"], job["engines"], job["cases"])
    summary["vocabulary"] = config.from_dict(values).vocab_size
    files.write_text(options.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
