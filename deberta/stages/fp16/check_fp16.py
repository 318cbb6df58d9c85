"""check-fp16: would the exported graph survive float16, ATC's default precision (force_fp16)?

Runs dynamic.onnx on real rows with float16 between its nodes (see fp16_run) and compares with ONNX Runtime in float32.
The gate fails if a value overflows, or if a row changes its label although float32 was sure of it. After an overflow
the nodes that have to stay in float32 are found, and written as ATC's --keep_dtype takes them.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deberta.core import contract, files
from deberta.core.contract import INPUTS, LABELS
from deberta.core.errors import ConfigError, DataError, GateError, MissingError, StageError, run_stage, some
from deberta.core.machine import effective_cpus
from deberta.stages import onnx_runtime
from deberta.stages.fp16 import emulation, keep_dtype
from deberta.stages.fp16.emulation import LARGEST, Float16Graph, Rows
from deberta.stages.fp16.survey import Logits, Survey, survey

DEFAULT_ROWS = 256
# Of a flip, in logits: what float32 preferred its label by. Below it, float32 held the two labels within a factor of
# e^0.1 = 1.1 of each other's probability, so that any other rounding may decide otherwise.
MARGIN = 0.1
TOLERANCE = 1e-4  # of the largest logit, from ONNX Runtime's to ours without rounding: more, and the emulation is wrong


def read_rows(bins: Path, batch_size: int, length: int, vocabulary: int, wanted: int) -> tuple[Rows, int, int]:
    """At least `wanted` real rows (0: all) from batches spread evenly over the folder; also counts the padding rows,
    and the batches that the folder holds. Raises MissingError and DataError."""
    names = {}
    for name in INPUTS:
        if not (bins / name).is_dir():
            raise MissingError(f"{bins / name} is missing. Run: invoke preprocess")
        names[name] = {entry.name for entry in (bins / name).iterdir() if not entry.name.startswith(".")}
    count = len(names[INPUTS[0]])
    expected = {contract.input_file(i) for i in range(count)}
    if not count or any(found != expected for found in names.values()):
        raise DataError(
            f"{bins} must hold input_0.bin, input_1.bin and so on, the same for {' and '.join(INPUTS)}."
            " Run: invoke preprocess --force"
        )
    batches = contract.batch_count(wanted, batch_size) if wanted else count
    batches = min(batches, count)
    chosen = [i * count // batches for i in range(batches)]
    ids = np.stack([_read(bins / INPUTS[0] / contract.input_file(i), batch_size, length, vocabulary) for i in chosen])
    mask = np.stack([_read(bins / INPUTS[1] / contract.input_file(i), batch_size, length, 2) for i in chosen])
    ids, mask = ids.reshape(-1, length), mask.reshape(-1, length)
    real = np.flatnonzero(mask.any(axis=1))
    if not len(real):
        raise DataError(f"{bins} holds no row with a token in it. Run: invoke preprocess --force")
    numbers = (np.repeat(chosen, batch_size) * batch_size + np.tile(np.arange(batch_size), batches))[real].tolist()
    return Rows(numbers, torch.from_numpy(ids[real]), torch.from_numpy(mask[real])), len(ids) - len(real), count


def _read(path: Path, batch_size: int, length: int, limit: int) -> npt.NDArray[np.int32]:
    values = np.fromfile(path, "<i4")
    if path.stat().st_size != contract.input_bytes(batch_size, length):
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, not {contract.input_bytes(batch_size, length)}: it is of another"
            " batch size or length. Run: invoke preprocess --force"
        )
    if values.min() < 0 or values.max() >= limit:
        raise DataError(
            f"{path} holds values from {values.min()} to {values.max()}, not whole numbers from 0 to {limit - 1}."
            " Run: invoke preprocess --force"
        )
    return values.reshape(batch_size, length)


def reference_logits(model: Path, parts: Sequence[Rows], threads: int) -> Logits:
    """ONNX Runtime's float32 logits of all rows."""
    session = onnx_runtime.open_session(model, threads)
    logits = np.concatenate([onnx_runtime.run(session, part.ids.numpy(), part.mask.numpy()) for part in parts])
    if not np.isfinite(logits).all():
        raise DataError(f"{model} gives NaN or infinite logits in float32 already. Run: invoke export-onnx --force")
    return logits


def compare(reference: Logits, logits: Logits, numbers: Sequence[int], margin: float) -> dict[str, Any]:
    """Differences of the rows whose logits are finite, and the rows whose label changed, by their float32 margin."""
    finite = np.logical_and.reduce(np.isfinite(logits), axis=1)
    difference = np.abs(logits[finite] - reference[finite])
    flips: list[dict[str, Any]] = []
    for i, number in enumerate(numbers):
        before, after = int(reference[i].argmax()), int(logits[i].argmax())  # the first of equals, as the guide's
        if finite[i] and before != after:
            ordered = np.sort(reference[i])
            preferred = float(ordered[-1] - ordered[-2])
            flips.append({"row": number, "float32": LABELS[before], "float16": LABELS[after], "margin": preferred})
    flips.sort(key=lambda flip: flip["margin"], reverse=True)
    return {
        "max_abs_difference": float(difference.max()) if difference.size else None,
        "mean_abs_difference": float(difference.mean()) if difference.size else None,
        "rows_not_finite": [number for number, is_finite in zip(numbers, finite, strict=True) if not is_finite],
        "flips": flips,
        "flips_beyond_margin": sum(flip["margin"] > margin for flip in flips),
    }


def weights_report(graph: Float16Graph) -> dict[str, Any]:
    """Weights that are not the same thing in float16: beyond its range, or not 0 before and 0 after."""
    found = []
    smallest = torch.finfo(torch.float16).smallest_normal
    for name, x in graph.weights.items():
        if not x.is_floating_point():
            continue
        magnitude = x.abs()
        vanish = int(((magnitude > 0) & (emulation.rounded(x) == 0)).sum())
        counted = {
            "overflow": emulation.overflows(x),
            "vanish": vanish,
            "subnormal": int(((magnitude > 0) & (magnitude < smallest)).sum()) - vanish,
        }
        if any(counted.values()):
            found.append({"name": name, "values": x.numel(), "max_abs": emulation.peak(x), **counted})
    return {"tensors": sum(x.is_floating_point() for x in graph.weights.values()), "changed": found}


def main(argv: Sequence[str]) -> None:
    options = _parse(argv)
    batch_size = contract.parse_batch_size(options.bs)
    wanted = contract.parse_integer("--rows", options.rows, DEFAULT_ROWS, 0, 2**31 - 1)
    margin = _parse_margin(options.margin)
    threads = effective_cpus()
    torch.set_num_threads(threads)
    graph = emulation.load(options.model)
    kept = keep_dtype.read(options.kept, graph) if options.kept else set()
    rows, padding, batches = read_rows(options.bins, batch_size, graph.length, graph.vocabulary, wanted)
    parts = rows.split()
    print(f"running {len(rows.numbers)} rows of {options.bins} in float32 and in float16", flush=True)
    reference = reference_logits(options.model, parts, threads)
    _check_emulation(graph, parts[0], reference)
    first = survey(graph, parts, kept, "check-fp16")
    compared = compare(reference, first.logits, rows.numbers, margin)
    cure = after = saturated = None
    if first.affected:
        saturated = compare(reference, _saturated(graph, first, rows, kept), rows.numbers, margin)
        print("looking for the nodes that have to stay in float32", flush=True)
        cure = keep_dtype.find(graph, parts, first.affected, kept)
        if cure is not None:
            after = compare(reference, cure.survey.logits, rows.numbers, margin)
    passed = not first.affected and not compared["flips_beyond_margin"]
    report = {
        "passed": passed,
        "emulation": " ".join((emulation.__doc__ or "").split()),
        "rows": len(rows.numbers),
        "row_numbers": "counted from 0 in the bins' order",
        "padding_rows": padding,
        "batch_size": batch_size,
        "batches": batches,
        "kept_before": sorted(kept),
        "largest": LARGEST,
        "margin": margin,
        "logits": compared,
        "logits_saturated": saturated,
        "overflows": [tally.as_json() for tally in first.origins],
        "keep": None if cure is None else {"nodes": cure.nodes, "irreducible": cure.irreducible, "logits": after},
        "weights": weights_report(graph),
        "nodes": [t.as_json() for t in sorted(first.tallies.values(), key=lambda t: -t.peak)],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    names = cure.nodes if cure else [node.name for node in graph.nodes if node.name in kept]
    if options.keep:
        keep_dtype.write(options.keep, names)
    _write(options.report, report)
    _write(options.summary, {key: value for key, value in report.items() if key not in ("nodes", "emulation")})
    _print(report)
    if not passed:
        raise GateError(_verdict(first, compared, cure, margin, options.keep, options.report))


def _saturated(graph: Float16Graph, first: Survey, rows: Rows, kept: set[str]) -> Logits:
    """The logits of a chip that gives float16's largest value where others give infinity."""
    logits = first.logits.copy()
    for part in first.affected:
        at = rows.numbers.index(part.numbers[0])
        logits[at : at + len(part.numbers)] = emulation.run(graph, part, kept, saturate=True).numpy()
    return logits


def _check_emulation(graph: Float16Graph, part: Rows, reference: Logits) -> None:
    """Without rounding, our own computation must be ONNX Runtime's."""
    logits = emulation.run(graph, part, None).numpy()
    difference = float(np.abs(logits - reference[: len(logits)]).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(reference).max())):
        raise StageError(f"the emulation without rounding differs from ONNX Runtime by {difference:.3g} in a logit")


def _print(report: dict[str, Any]) -> None:
    print(f"{report['rows']} rows, {report['padding_rows']} padding rows left out; the largest values:")
    for node in report["nodes"][:5]:
        print(f"  {node['max_abs']:10.4g}  {100 * node['of_largest']:6.2f} % of {LARGEST:.0f}  {node['name']}")
    for what, logits in (("float16", report["logits"]), ("saturating float16", report["logits_saturated"])):
        if logits is None or logits["max_abs_difference"] is None:
            continue
        print(
            f"logits, {what} against float32: max |difference| {logits['max_abs_difference']:.3g}, mean"
            f" {logits['mean_abs_difference']:.3g}; {len(logits['flips'])} labels change,"
            f" {logits['flips_beyond_margin']} beyond a margin of {report['margin']:g}"
        )
        for flip in logits["flips"][:5]:
            print(f"  row {flip['row']}: {flip['float32']} -> {flip['float16']}, margin {flip['margin']:.3g}")
    sys.stdout.flush()


def _verdict(
    first: Survey,
    compared: dict[str, Any],
    cure: keep_dtype.Cure | None,
    margin: float,
    keep: Path | None,
    report: Path | None,
) -> str:
    """What failed, at which nodes or rows, and what to do."""
    said = []
    if first.affected:
        nodes = [f"{t.name} (max {t.peak:.3g})" for t in first.origins]
        rows: set[int] = set().union(*(t.rows for t in first.origins))
        where = f"{len(nodes)} nodes in {len(rows)} of {len(first.logits)} rows"
        said.append(f"float16 overflows at {where}: {some(nodes)}")
    if compared["flips_beyond_margin"]:
        worst = [f"{flip['row']} ({flip['margin']:.3g})" for flip in compared["flips"] if flip["margin"] > margin]
        said.append(f"{len(worst)} rows change their label beyond a margin of {margin:g} logits: row {some(worst)}")
    if cure:
        where = f"as {keep} lists them: set keep_dtype under atc in invoke.yaml to that file" if keep else "in ATC"
        said.append(f"keep {len(cure.nodes)} nodes in float32 ({some(cure.nodes, 3)}), {where}")
    else:
        kind = "no list of nodes to keep was found" if first.affected else "there is no node to blame"
        said.append(f"{kind}: set precision_mode under atc in invoke.yaml to allow_fp32_to_fp16")
    said.append("then run: invoke build-om --force")
    if report:
        said.append(f"see {report}")
    return "; ".join(said)


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path:
        files.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _parse_margin(text: str | None) -> float:
    try:
        value = MARGIN if text is None else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"--margin {text!r} is not a number of logits from 0")
    return value


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.fp16.check_fp16", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="dynamic.onnx")
    parser.add_argument("--bins", type=Path, required=True, help="folder with input_ids/ and input_mask/")
    parser.add_argument("--bs", required=True, help="rows in a bin")
    parser.add_argument("--rows", help=f"rows to run, spread over the bins; 0: all; default: {DEFAULT_ROWS}")
    parser.add_argument("--kept", type=Path, help="nodes that ATC keeps in float32 already, a name per line")
    parser.add_argument("--margin", help=f"logits by which float32 may have preferred a lost label; default: {MARGIN}")
    parser.add_argument("--keep", type=Path, help="write the nodes to keep in float32 here; none: no file")
    parser.add_argument("--report", type=Path, help="write what every node did to this JSON file")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_stage(main))
