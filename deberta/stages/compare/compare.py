"""compare: how far two ways of running one model agree, row by row, and where they part.

Runs one side, then the other, on the same rows, and only then judges: the gate fails if a logit differs by more than
the tolerance, is not finite, or a label changes although one side preferred its own by more than that. Where it fails
and both sides have layers, the first one that differs is looked for, and the node in it (see compare_layers).
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
import torch

from deberta.core import contract, files
from deberta.core.contract import LABELS, OUTPUT, SEQUENCE_LENGTH
from deberta.core.errors import ConfigError, DataError, GateError, run_stage, some
from deberta.core.machine import effective_cpus
from deberta.stages.compare import layers as compare_layers
from deberta.stages.compare.layers import Divergence
from deberta.stages.compare.sides import HALF, KINDS, Array, Setting, Side, open_side, scratch_beside
from deberta.stages.fp16 import check_fp16
from deberta.stages.fp16.emulation import Rows
from deberta.stages.model import config

DEFAULT_ROWS = 256
FIRST_LINE = 2  # of the tsv: the header is line 1
# Largest difference of a logit. Float32 on both sides: what an export and a compilation are held to. Float16 on one:
# check-fp16's margin, below which either label is as good as the other.
TOLERANCE = {False: 1e-4, True: 0.1}
# The same for a layer's output, relative to the largest magnitude in it. At full size sound sides differ by 3e-6, since
# sums in float32 depend on their order, and with float16 on one side by 0.004.
LAYER_TOLERANCE = {False: 2e-5, True: 0.02}


def compare_logits(a: Array, b: Array, numbers: Sequence[int], tolerance: float) -> dict[str, Any]:
    """What differs between two float32 [rows, 3], of the rows `numbers`.

    Differences are of rows that are finite on both sides. A flip is a near tie if both sides prefer their label by at
    most `tolerance`.
    """
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    gaps = np.full(len(a), -1.0, np.float32)
    gaps[finite] = np.abs(a[finite] - b[finite]).max(axis=1)
    flips: list[dict[str, Any]] = []
    for i in np.flatnonzero(finite & (a.argmax(axis=1) != b.argmax(axis=1))).tolist():
        labels = [LABELS[int(side[i].argmax())] for side in (a, b)]  # the first of equals, as the guide's
        flips.append({**_place(numbers[i]), "labels": labels, "margins": [_margin(a[i]), _margin(b[i])]})
    flips.sort(key=lambda flip: max(flip["margins"]), reverse=True)
    worst = int(gaps.argmax())
    found = bool(finite.any())
    return {
        "max_abs_difference": float(gaps[worst]) if found else None,
        "mean_abs_difference": float(np.abs(a[finite] - b[finite]).mean()) if found else None,
        "worst": {**_place(numbers[worst]), "logits": [a[worst].tolist(), b[worst].tolist()]} if found else None,
        "rows_not_finite": [
            [numbers[i] for i in np.flatnonzero(~np.isfinite(side).all(axis=1)).tolist()] for side in (a, b)
        ],
        "flips": flips,
        "flips_beyond_near_ties": sum(max(flip["margins"]) > tolerance for flip in flips),
    }


def problems_of(compared: dict[str, Any], tolerance: float, names: Sequence[str]) -> list[str]:
    """Why the gate is not met, a phrase each; none: it is."""
    said = []
    if bad := [
        f"{len(rows)} rows of {name}" for name, rows in zip(names, compared["rows_not_finite"], strict=True) if rows
    ]:
        said.append(f"logits that are not finite in {' and '.join(bad)}")
    largest = compared["max_abs_difference"]
    if largest is not None and largest > tolerance:
        worst = compared["worst"]
        said.append(
            f"max |difference| {largest:.3g} in row {worst['row']} (line {worst['line']}), allowed {tolerance:g}"
        )
    if count := compared["flips_beyond_near_ties"]:
        rows = [f"{flip['row']} ({max(flip['margins']):.3g})" for flip in compared["flips"][:count]]
        said.append(f"{count} labels change beyond near ties: row {some(rows)}")
    return said


def main(argv: Sequence[str]) -> None:
    options = _parse(argv)
    batch_size = contract.parse_batch_size(options.bs)
    length = contract.parse_integer("--sequence-length", options.sequence_length, SEQUENCE_LENGTH, 1, 2**15)
    wanted = contract.parse_integer("--rows", options.rows, DEFAULT_ROWS, 0, 2**31 - 1)
    half = options.a in HALF or options.b in HALF
    tolerance = _number("--tolerance", options.tolerance, TOLERANCE[half])
    layer_tolerance = _number("--layer-tolerance", options.layer_tolerance, LAYER_TOLERANCE[half])
    if (options.a, options.a_file) == (options.b, options.b_file):
        raise ConfigError(f"{options.a} of {options.a_file} would be compared with itself. Name another file for one")
    torch.set_num_threads(effective_cpus())
    vocabulary = config.read(options.config).vocab_size
    rows, padding, batches = check_fp16.read_rows(options.bins, batch_size, length, vocabulary, wanted)
    scratch = scratch_beside(options.report)
    scratch.mkdir(parents=True)
    try:
        setting = Setting(
            config=options.config,
            labels=tuple(options.labels.split(",")) if options.labels else (),
            batch_size=batch_size,
            batches=batches,
            threads=effective_cpus(),
            scratch=scratch,
            graph=options.graph,
            kept=options.kept,
        )
        a, b = open_side(options.a, options.a_file, setting), open_side(options.b, options.b_file, setting)
        print(f"running {len(rows.numbers)} rows of {options.bins} with {a.kind}, then with {b.kind}", flush=True)
        ran = _logits(a, rows), _logits(b, rows)
        compared = compare_logits(*ran, rows.numbers, tolerance)
        problems = problems_of(compared, tolerance, (a.kind, b.kind))
        why_not = _no_search(a, b, bool(problems) or options.all_layers)
        found, searched = Divergence(), list[int]()
        if not why_not:
            few = compare_layers.worst_rows(*ran, rows)
            searched = few.numbers
            print(f"looking for the first layer that differs, in rows {', '.join(map(str, searched))}", flush=True)
            found = compare_layers.search(a, b, few, layer_tolerance, options.all_layers)
    finally:
        files.remove(scratch)
    report: dict[str, Any] = {
        "passed": not problems,
        "problems": problems,
        "sides": [{"kind": side.kind, "file": str(side.file)} for side in (a, b)],
        "version": options.version,
        "batch_size": batch_size,
        "batches": batches,
        "rows": len(rows.numbers),
        "row_numbers": "counted from 0 in the bins' order; line: of the tsv, whose header is line 1",
        "padding_rows": padding,
        "tolerance": tolerance,
        "logits": compared,
        "layers": {
            "searched_in_rows": searched,
            "not_searched": why_not,
            "tolerance": layer_tolerance,
            "all": bool(options.all_layers),
            "assumes": " ".join((compare_layers.__doc__ or "").split()),
            **found.as_json(),
        },
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    report["summary"] = lines_of(report)
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    files.write_text(options.report, text)
    if options.summary:
        files.write_text(options.summary, text)
    print("\n".join(report["summary"]), flush=True)
    if problems:
        where = f"; first layer that differs: {_where(report['layers'])}" if not why_not else ""
        raise GateError(f"{a.kind} and {b.kind} differ: {'; '.join(problems)}{where}. See {options.report}")


def lines_of(report: dict[str, Any]) -> list[str]:
    """What is printed of a report."""
    compared, layers = report["logits"], report["layers"]
    first, second = (side["kind"] for side in report["sides"])
    said = [
        f"{first} against {second}, {report['rows']} rows of {report['version']} in bins of {report['batch_size']}:"
    ]
    if compared["worst"]:
        worst = compared["worst"]
        said.append(
            f"  logits: max |difference| {compared['max_abs_difference']:.3g} in row {worst['row']} (line"
            f" {worst['line']}), mean {compared['mean_abs_difference']:.3g}; allowed {report['tolerance']:g}"
        )
    for side, rows in zip((first, second), compared["rows_not_finite"], strict=True):
        if rows:
            said.append(f"  {side}: logits that are not finite in {len(rows)} rows: {some([str(row) for row in rows])}")
    said.append(
        f"  labels that change: {len(compared['flips'])}, {compared['flips_beyond_near_ties']} beyond near ties"
    )
    for flip in compared["flips"][:5]:
        said.append(
            f"    row {flip['row']} (line {flip['line']}): {' -> '.join(flip['labels'])}, margins"
            f" {flip['margins'][0]:.3g} and {flip['margins'][1]:.3g}"
        )
    said.append(f"  first layer that differs: {layers['not_searched'] or _where(layers)}")
    for one in layers["probes"] if layers["all"] else ():
        told = (
            "not comparable"
            if one["relative"] is None
            else f"{one['max_abs']:.3g} ({one['relative']:.2g} of its largest)"
        )
        said.append(f"    {one['name']}: {told}")
    return said


def _where(layers: dict[str, Any]) -> str:
    if layers["layer"] is None:
        return f"none by more than {layers['tolerance']:g} of its largest value"
    before = f"{layers['before']} before it agrees" if layers["before"] else "its inputs are the same"
    node = layers["node"]
    inside = f", node {node['name']} ({node['op']})" if node else ""
    doubt = "" if layers["verified"] else "; not seen again when both were handed out in one run"
    return f"{layers['layer']}{inside}; {before}{doubt}"


def _no_search(a: Side, b: Side, wanted: bool) -> str:
    """Why no layers are compared; empty if they are."""
    if bare := [f"{side.kind} has none by name" for side in (a, b) if not side.marks]:
        return f"not looked for, {' and '.join(bare)}"
    return "" if wanted else "none looked for, the logits agree"


def _logits(side: Side, rows: Rows) -> Array:
    """Float32 [rows, 3]. Raises DataError for another shape."""
    found = side.run(rows, (OUTPUT,)).get(OUTPUT)
    if found is None or found.size != len(rows.numbers) * len(LABELS):
        raise DataError(f"{side.file} gives no float32 logits [{len(rows.numbers)}, {len(LABELS)}]. Make it again")
    return found.reshape(len(rows.numbers), len(LABELS))


def _place(number: int) -> dict[str, int]:
    return {"row": number, "line": number + FIRST_LINE}


def _margin(logits: Array) -> float:
    ordered = np.sort(logits)
    return float(ordered[-1] - ordered[-2])


def _number(option: str, text: str | None, default: float) -> float:
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{option} {text!r} is not a number from 0")
    return value


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.compare.compare", description=__doc__)
    for name in ("a", "b"):
        parser.add_argument(f"--{name}", choices=KINDS, required=True)
        parser.add_argument(
            f"--{name}-file", type=Path, required=True, help="checkpoint, .onnx, .xml, folder of outputs, or .npy"
        )
    parser.add_argument("--config", type=Path, required=True, help="the model's config")
    parser.add_argument("--labels", help="the checkpoint's label order; default: the config's id2label")
    parser.add_argument("--bins", type=Path, required=True, help="folder with input_ids/ and input_mask/")
    parser.add_argument("--bs", required=True, help="rows in a bin")
    parser.add_argument("--version", default="match", help="match or mismatch, recorded in the report")
    parser.add_argument("--sequence-length", help=f"tokens in a row of a bin; default: {SEQUENCE_LENGTH}")
    parser.add_argument("--rows", help=f"rows to run, spread over the bins; 0: all; default: {DEFAULT_ROWS}")
    parser.add_argument("--graph", type=Path, help="the ONNX that a compiled model was made of, to find its layers")
    parser.add_argument("--kept", type=Path, help="fp16: nodes that stay in float32, a name per line")
    parser.add_argument("--tolerance", help="largest difference of a logit; default: 1e-4, with float16 0.1")
    parser.add_argument("--layer-tolerance", help="of a layer, relative; default: 2e-5, with float16 0.02")
    parser.add_argument("--all-layers", action="store_true", help="compare every layer, also if the logits agree")
    parser.add_argument("--report", type=Path, required=True, help="write what was found to this JSON file")
    parser.add_argument("--summary", type=Path, help="write the same to this JSON file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_stage(main))
