"""check-fp16: would the exported graph survive float16, ATC's default precision (force_fp16)?

Runs dynamic.onnx on real rows with float16 between its nodes (see emulation) and compares with ONNX Runtime in float32.
The gate fails if a value overflows, or if a row changes its label although float32 was sure of it. After an overflow
the nodes that have to stay in float32 are searched for, and written as ATC's --keep_dtype takes them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deberta.core.errors import DataError, GateError, StageError, run_stage, some
from deberta.core.machine import effective_cpus
from deberta.stages import arguments, onnx_runtime
from deberta.stages.arguments import Argument, decimal, file
from deberta.stages.data import bins
from deberta.stages.data.bins import Rows
from deberta.stages.fp16 import emulation, keep_dtype
from deberta.stages.fp16.emulation import LARGEST, PART_ROWS, Float16Graph
from deberta.stages.fp16.keep_dtype import Cure
from deberta.stages.fp16.survey import Survey, survey
from deberta.stages.inference.logits import Logits, compare_logits

# Of a flip (a changed label), in logits: how much float32 preferred its label. Below it, float32 held the two labels
# within a factor of e^0.1 = 1.1 of each other's probability, so that any other rounding may decide otherwise.
MARGIN = 0.1
TOLERANCE = 1e-4  # of the largest logit, from ONNX Runtime's to ours without rounding: more, and the emulation is wrong


def logits_report(reference: Logits, logits: Logits, numbers: Sequence[int], margin: float) -> dict[str, Any]:
    """The report's object of float16 logits, [rows, 3], of the rows `numbers`: differences of the finite rows, and the
    labels that changed, by their float32 margin."""
    difference = compare_logits(reference, logits)
    margins = difference.margins[0]
    return {
        "max_abs_difference": difference.max_abs,
        "mean_abs_difference": difference.mean_abs,
        "rows_not_finite": [numbers[row] for row in np.flatnonzero(~difference.finite).tolist()],
        "flips": [
            {"row": numbers[row], "float32": before, "float16": after, "margin": margin}
            for row, (before, after), (margin, _) in difference.changes(margins)
        ],
        "flips_beyond_margin": int((margins[difference.changed] > margin).sum()),
    }


def weights_report(graph: Float16Graph) -> dict[str, Any]:
    """Weights that float16 changes: to infinity, to 0, or to a subnormal number."""
    changed, smallest = [], torch.finfo(torch.float16).smallest_normal
    floats = {name: x for name, x in graph.weights.items() if x.is_floating_point()}
    for name, x in floats.items():
        magnitude = x.abs()
        vanish = int(((magnitude > 0) & (emulation.rounded(x) == 0)).sum())
        counts = {
            "overflow": emulation.overflows(x),
            "vanish": vanish,
            "subnormal": int(((magnitude > 0) & (magnitude < smallest)).sum()) - vanish,
        }
        if any(counts.values()):
            changed.append({"name": name, "values": x.numel(), "max_abs": emulation.peak(x), **counts})
    return {"tensors": len(floats), "changed": changed}


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "model bins bs summary",
        optional=("kept",),
        rows=bins.SAMPLE_ROWS,
        margin=Argument("logits by which float32 may have preferred a lost label", decimal(100_000), default=MARGIN),
        keep=file("write the nodes to keep in float32 here; none: no file", required=False),
        report=file("write what every node did to this JSON file", required=False),
    )
    margin = options.margin
    threads = effective_cpus()
    torch.set_num_threads(threads)
    graph = emulation.load(options.model)
    kept = keep_dtype.read(options.kept, graph) if options.kept else set()
    sample = bins.read_sample(options.bins, options.bs, graph.length, graph.vocabulary, options.rows)
    rows, parts = sample.rows, sample.rows.split(PART_ROWS)
    print(f"running {len(rows)} rows of {options.bins} in float32 and in float16", flush=True)
    session = onnx_runtime.open_session(options.model, threads)
    reference = np.concatenate([onnx_runtime.run(session, part.ids, part.mask) for part in parts])
    if not np.isfinite(reference).all():
        raise DataError(f"{options.model} gives NaN or infinite logits in float32 already. {emulation.AGAIN}")
    _check_emulation(graph, parts[0], reference)
    first = survey(graph, parts, kept, "check-fp16")
    compared = logits_report(reference, first.logits, rows.numbers, margin)
    cure = after = saturated = None
    if first.affected:
        logits = first.logits.copy()  # of a chip that gives float16's largest value where others give infinity
        for part in first.affected:
            at = rows.numbers.index(part.numbers[0])
            logits[at : at + len(part)] = emulation.run(graph, part, kept, saturate=True).numpy()
        saturated = logits_report(reference, logits, rows.numbers, margin)
        print("looking for the nodes that have to stay in float32", flush=True)
        cure = keep_dtype.find(graph, parts, first.affected, kept)
        if cure is not None:
            after = logits_report(reference, cure.survey.logits, rows.numbers, margin)
    passed = not first.affected and not compared["flips_beyond_margin"]
    report = {
        "passed": passed,
        "emulation": " ".join((emulation.__doc__ or "").split()),
        "rows": len(rows),
        "row_numbers": "counted from 0 in the bins' order",
        "padding_rows": sample.padding_rows,
        "batch_size": options.bs,
        "batches": sample.batches,
        "kept_before": sorted(kept),
        "largest": LARGEST,
        "margin": margin,
        "logits": compared,
        "logits_saturated": saturated,
        "overflows": [tally.as_json() for tally in first.origins],
        "keep": None if cure is None else {"nodes": cure.nodes, "irreducible": cure.irreducible, "logits": after},
        "weights": weights_report(graph),
        "nodes": [tally.as_json() for tally in sorted(first.tallies.values(), key=lambda tally: -tally.peak)],
    }
    if options.keep:
        keep_dtype.write(options.keep, cure.nodes if cure else [n.name for n in graph.nodes if n.name in kept])
    report["summary"] = lines_of(report)
    arguments.write_summary(options.report, report)
    short = {key: value for key, value in report.items() if key not in ("nodes", "emulation")}
    arguments.write_summary(options.summary, short)
    if options.summary is None:  # or our caller prints it
        print("\n".join(report["summary"]), flush=True)
    if not passed:
        raise GateError(_verdict(first, compared, cure, margin, options.keep, options.report))


def _check_emulation(graph: Float16Graph, part: Rows, reference: Logits) -> None:
    """Without rounding, our own computation must be ONNX Runtime's."""
    logits = emulation.run(graph, part, None).numpy()
    difference = compare_logits(reference[: len(logits)], logits)
    if not difference.within(TOLERANCE * max(1.0, float(np.abs(reference).max()))):
        largest = difference.row_max.max()
        raise StageError(f"the emulation without rounding differs from ONNX Runtime by {largest:.3g} in a logit")


def lines_of(report: dict[str, Any]) -> list[str]:
    """The lines that are printed of a report."""
    lines = [f"{report['rows']} rows, {report['padding_rows']} padding rows left out; the largest values:"]
    for node in report["nodes"][:5]:
        lines.append(f"  {node['max_abs']:10.4g}  {100 * node['of_largest']:6.2f} % of {LARGEST:.0f}  {node['name']}")
    for kind, logits in (("float16", report["logits"]), ("saturating float16", report["logits_saturated"])):
        if logits is None or logits["max_abs_difference"] is None:
            continue
        lines.append(
            f"logits, {kind} against float32: max |difference| {logits['max_abs_difference']:.3g}, mean"
            f" {logits['mean_abs_difference']:.3g}; {len(logits['flips'])} labels change,"
            f" {logits['flips_beyond_margin']} beyond a margin of {report['margin']:g}"
        )
        for flip in logits["flips"][:5]:
            lines.append(f"  row {flip['row']}: {flip['float32']} -> {flip['float16']}, margin {flip['margin']:.3g}")
    return lines


def _verdict(
    first: Survey, compared: dict[str, Any], cure: Cure | None, margin: float, keep: Path | None, report: Path | None
) -> str:
    """What failed, at which nodes or rows, and what to do."""
    phrases = []
    if first.affected:
        nodes = [f"{tally.name} (max {tally.peak:.3g})" for tally in first.origins]
        rows: set[int] = set().union(*(tally.rows for tally in first.origins))
        where = f"{len(nodes)} nodes in {len(rows)} of {len(first.logits)} rows"
        phrases.append(f"float16 overflows at {where}: {some(nodes)}")
    if compared["flips_beyond_margin"]:
        worst = [f"{flip['row']} ({flip['margin']:.3g})" for flip in compared["flips"] if flip["margin"] > margin]
        phrases.append(f"{len(worst)} rows change their label beyond a margin of {margin:g} logits: row {some(worst)}")
    if cure:
        where = f"as {keep} lists them: set keep_dtype under atc in invoke.yaml to that file" if keep else "in ATC"
        phrases.append(f"keep {len(cure.nodes)} nodes in float32 ({some(cure.nodes, 3)}), {where}")
    else:
        kind = "no list of nodes to keep was found" if first.affected else "there is no node to blame"
        phrases.append(f"{kind}: set precision_mode under atc in invoke.yaml to allow_fp32_to_fp16")
    phrases.append("then run: invoke build-om --force")
    if report:
        phrases.append(f"see {report}")
    return "; ".join(phrases)


if __name__ == "__main__":
    sys.exit(run_stage(main))
