"""compare: how far two ways of running one model agree, row by row, and where they part.

Runs one side, then the other, on the same rows, and only then judges: the gate fails if a logit differs by more than
the tolerance, is not finite, or a label changes although one side preferred its own by more than that. Where it fails
and both sides have layers, the first layer that differs is searched for, and the node in it (see layers).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from deberta.core import files
from deberta.core.contract import LABELS, OUTPUT
from deberta.core.errors import ConfigError, DataError, GateError, run_stage, some
from deberta.core.machine import effective_cpus
from deberta.stages import arguments
from deberta.stages.arguments import Argument, decimal, file, flag, one_of
from deberta.stages.compare import layers, sides
from deberta.stages.compare.layers import Divergence
from deberta.stages.compare.sides import Setting, Side
from deberta.stages.data import bins
from deberta.stages.data.bins import Rows
from deberta.stages.inference.logits import Logits, LogitsDifference, compare_logits, finite_rows
from deberta.stages.model import config

FIRST_LINE = 2  # of the tsv: the header is line 1
# Largest difference of a logit. Float32 on both sides: what an export and a compilation are held to. Float16 on one:
# check-fp16's margin, below which either label is as good as the other.
TOLERANCE = {False: 1e-4, True: 0.1}
# The same for a layer's output, relative to the largest magnitude in it. At full size sound sides differ by 3e-6, since
# sums in float32 depend on their order, and with float16 on one side by 0.004.
LAYER_TOLERANCE = {False: 2e-5, True: 0.02}


def logits_report(difference: LogitsDifference, a: Logits, b: Logits, rows: Rows, tolerance: float) -> dict[str, Any]:
    """The report's object of two sides' logits, float32 [rows, 3] each; differences are of the finite rows.

    A flip (a changed label) is a near tie if both sides prefer their label by at most `tolerance`.
    """
    margins = np.maximum(*difference.margins)
    flips = [
        {**_place(rows, row), "labels": labels, "margins": both} for row, labels, both in difference.changes(margins)
    ]
    worst = int(np.where(difference.finite, difference.row_max, -1).argmax())
    return {
        "max_abs_difference": difference.max_abs,
        "mean_abs_difference": difference.mean_abs,
        "worst": {**_place(rows, worst), "logits": [a[worst].tolist(), b[worst].tolist()]}
        if difference.finite.any()
        else None,
        "rows_not_finite": [
            [rows.numbers[row] for row in np.flatnonzero(~finite_rows(logits)).tolist()] for logits in (a, b)
        ],
        "flips": flips,
        "flips_beyond_near_ties": int((margins[difference.changed] > tolerance).sum()),
    }


def problems_of(compared: dict[str, Any], tolerance: float, kinds: Sequence[str]) -> list[str]:
    """Why the gate is not met, a phrase each; empty if it is."""
    problems = []
    not_finite = zip(kinds, compared["rows_not_finite"], strict=True)
    if counts := [f"{len(rows)} rows of {kind}" for kind, rows in not_finite if rows]:
        problems.append(f"logits that are not finite in {' and '.join(counts)}")
    worst, largest = compared["worst"], compared["max_abs_difference"]
    if worst and largest > tolerance:
        place = f"row {worst['row']} (line {worst['line']})"
        problems.append(f"max |difference| {largest:.3g} in {place}, allowed {tolerance:g}")
    if count := compared["flips_beyond_near_ties"]:
        rows = [f"{flip['row']} ({max(flip['margins']):.3g})" for flip in compared["flips"][:count]]
        problems.append(f"{count} labels change beyond near ties: row {some(rows)}")
    return problems


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "config bins bs version sequence_length summary",
        optional=("labels", "kept"),
        a=Argument("what the first side is", one_of(sides.KINDS), required=True),
        a_file=file("checkpoint, .onnx, .xml, folder of outputs, or .npy"),
        b=Argument("what the second side is", one_of(sides.KINDS), required=True),
        b_file=file("the same for the second side"),
        rows=bins.SAMPLE_ROWS,
        graph=file("the ONNX that a compiled model was made of, to know its layers", required=False),
        tolerance=Argument("largest difference of a logit; default: 1e-4, with float16 0.1", decimal(100_000)),
        layer_tolerance=Argument("of a layer, relative; default: 2e-5, with float16 0.02", decimal(100_000)),
        all_layers=flag("compare every layer, also if the logits agree"),
        report=file("write the result to this JSON file"),
    )
    half = options.a in sides.HALF or options.b in sides.HALF
    tolerance = TOLERANCE[half] if options.tolerance is None else options.tolerance
    layer_tolerance = LAYER_TOLERANCE[half] if options.layer_tolerance is None else options.layer_tolerance
    if (options.a, options.a_file) == (options.b, options.b_file):
        raise ConfigError(f"{options.a} of {options.a_file} would be compared with itself. Name another file for one")
    threads = effective_cpus()
    torch.set_num_threads(threads)
    vocabulary = config.read(options.config).vocab_size
    sample = bins.read_sample(options.bins, options.bs, options.sequence_length, vocabulary, options.rows)
    rows = sample.rows
    with files.staged(options.report) as scratch:
        scratch.mkdir()
        setting = Setting(options, sample.batches, threads, scratch)
        a, b = sides.open_side(options.a, options.a_file, setting), sides.open_side(options.b, options.b_file, setting)
        print(f"running {len(rows)} rows of {options.bins} with {a.kind}, then with {b.kind}", flush=True)
        logits_a, logits_b = _logits(a, rows), _logits(b, rows)
        difference = compare_logits(logits_a, logits_b)
        compared = logits_report(difference, logits_a, logits_b, rows, tolerance)
        problems = problems_of(compared, tolerance, (a.kind, b.kind))
        without = [f"{side.kind} has none by name" for side in (a, b) if not side.marks]
        not_searched = f"not looked for, {' and '.join(without)}" if without else ""
        if not (without or problems or options.all_layers):
            not_searched = "none looked for, the logits agree"
        divergence, searched = Divergence(), list[int]()
        if not not_searched:
            worst = layers.worst_rows(difference, rows)
            searched = worst.numbers
            print(f"looking for the first layer that differs, in rows {', '.join(map(str, searched))}", flush=True)
            divergence = layers.search(a, b, worst, layer_tolerance, options.all_layers)
    report: dict[str, Any] = {
        "passed": not problems,
        "problems": problems,
        "sides": [{"kind": side.kind, "file": str(side.file)} for side in (a, b)],
        "version": options.version,
        "batch_size": options.bs,
        "batches": sample.batches,
        "rows": len(rows),
        "row_numbers": "counted from 0 in the bins' order; line: of the tsv, whose header is line 1",
        "padding_rows": sample.padding_rows,
        "tolerance": tolerance,
        "logits": compared,
        "layers": {
            "searched_in_rows": searched,
            "not_searched": not_searched,
            "tolerance": layer_tolerance,
            "all": options.all_layers,
            "assumes": " ".join((layers.__doc__ or "").split()),
            **asdict(divergence),
        },
    }
    report["summary"] = lines_of(report)
    for path in (options.report, options.summary):
        arguments.write_summary(path, report)
    if options.summary is None:  # or our caller prints it
        print("\n".join(report["summary"]), flush=True)
    if problems:
        where = f"; first layer that differs: {_where(report['layers'])}" if not not_searched else ""
        raise GateError(f"{a.kind} and {b.kind} differ: {'; '.join(problems)}{where}. See {options.report}")


def lines_of(report: dict[str, Any]) -> list[str]:
    """The lines that are printed of a report."""
    compared, divergence = report["logits"], report["layers"]
    kinds = [side["kind"] for side in report["sides"]]
    lines = [
        f"{kinds[0]} against {kinds[1]}, {report['rows']} rows of {report['version']} in bins of"
        f" {report['batch_size']}:"
    ]
    if worst := compared["worst"]:
        lines.append(
            f"  logits: max |difference| {compared['max_abs_difference']:.3g} in row {worst['row']} (line"
            f" {worst['line']}), mean {compared['mean_abs_difference']:.3g}; allowed {report['tolerance']:g}"
        )
    for kind, rows in zip(kinds, compared["rows_not_finite"], strict=True):
        if rows:
            lines.append(f"  {kind}: logits that are not finite in {len(rows)} rows: {some(list(map(str, rows)))}")
    flips = compared["flips"]
    lines.append(f"  labels that change: {len(flips)}, {compared['flips_beyond_near_ties']} beyond near ties")
    for flip in flips[:5]:
        margins = " and ".join(f"{margin:.3g}" for margin in flip["margins"])
        lines.append(f"    row {flip['row']} (line {flip['line']}): {' -> '.join(flip['labels'])}, margins {margins}")
    lines.append(f"  first layer that differs: {divergence['not_searched'] or _where(divergence)}")
    for probe in divergence["probes"] if divergence["all"] else ():
        relative = probe["relative"]
        text = "not comparable" if relative is None else f"{probe['max_abs']:.3g} ({relative:.2g} of its largest)"
        lines.append(f"    {probe['name']}: {text}")
    return lines


def _where(divergence: dict[str, Any]) -> str:
    if divergence["layer"] is None:
        return f"none by more than {divergence['tolerance']:g} of its largest value"
    before = f"{divergence['before']} before it agrees" if divergence["before"] else "its inputs are the same"
    node = divergence["node"]
    inside = f", node {node['name']} ({node['op']})" if node else ""
    doubt = "" if divergence["verified"] else "; not seen again when both were handed out in one run"
    return f"{divergence['layer']}{inside}; {before}{doubt}"


def _logits(side: Side, rows: Rows) -> Logits:
    """Float32 [rows, 3]. Raises DataError for another shape."""
    logits = side.run(rows, (OUTPUT,)).get(OUTPUT)
    if logits is None or logits.size != len(rows) * len(LABELS):
        raise DataError(f"{side.file} gives no float32 logits [{len(rows)}, {len(LABELS)}]. Make it again")
    return logits.reshape(len(rows), len(LABELS))


def _place(rows: Rows, row: int) -> dict[str, int]:
    """Where row `row` of `rows` is in the bins and in the tsv."""
    return {"row": rows.numbers[row], "line": rows.numbers[row] + FIRST_LINE}


if __name__ == "__main__":
    sys.exit(run_stage(main))
