"""lint-onnx: an offline check of an ONNX file against what is known of ATC and the 310P in CANN 5.1.RC2.

It reads the file alone: no CANN, no device. Each finding has its rule, its nodes, what they move in one inference at
each batch size, where the rule is from, and what to do. The rules are in lint_rules.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deberta.core import files
from deberta.core.contract import SEQUENCE_LENGTH, parse_integer
from deberta.core.errors import ConfigError, GateError, run_stage, some
from deberta.stages.lint import checks
from deberta.stages.lint import cost as lint_stats
from deberta.stages.lint import graph as lint_graph
from deberta.stages.lint.checks import LintFinding
from deberta.stages.lint.graph import Cost, Graph
from deberta.stages.lint.rules import DOCUMENTED, RULES, SEVERITIES

FORMATS = ("text", "json", "sarif")
_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_PLACES = 50  # nodes of one finding that the JSON and SARIF name


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="lint_onnx", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="any ONNX file")
    parser.add_argument("--batch-sizes", default="1,8,64", help="comma separated; default: 1,8,64")
    parser.add_argument("--sequence-length", default=None, help=f"the length to expect, default: {SEQUENCE_LENGTH}")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--output", type=Path, help="write there instead of to standard output")
    parser.add_argument("--severity", choices=SEVERITIES, default="error", help="fail from this severity on")
    parser.add_argument("--stats", action="store_true", help="count parameters, FLOP and bytes too")
    parser.add_argument(
        "--device", nargs="+", default=["310P"], help="with --stats: 310P, cpu or NAME=TFLOPS,GB/s[,BYTES PER FLOAT]"
    )
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    batches = parse_batches(options.batch_sizes)
    length = parse_integer("--sequence-length", options.sequence_length, SEQUENCE_LENGTH, 1, 1 << 20)
    devices = [lint_stats.device(text) for text in options.device] if options.stats else []
    graph = None if lint_graph.too_large(options.model) else lint_graph.load(options.model)
    if graph is None:
        findings = [checks.size_finding(options.model.stat().st_size)]
    else:
        batches = [graph.fixed_batch] if graph.fixed_batch else batches
        findings = checks.check(graph, batches, length)
    report = {
        "model": options.model.as_posix(),
        "sha256": files.sha256_of(options.model),
        "bytes": options.model.stat().st_size,
        **described(graph),
        "batch_sizes": batches,
        "counts": {one: sum(finding.rule.severity == one for finding in findings) for one in SEVERITIES},
        "findings": [as_dict(finding) for finding in findings],
        **({"stats": lint_stats.statistics(graph, batches, devices)} if graph and options.stats else {}),
    }
    written = {"text": text, "json": as_json, "sarif": sarif}[options.format](report)
    if options.output:
        files.write_text(options.output, written)
        print(f"{options.output}: {counted(report)}", flush=True)
    else:
        print(written, end="", flush=True)
    if options.summary:
        rules = dict(sorted(Counter(finding.rule.id for finding in findings).items()))
        kept = ("sha256", "bytes", "batch_sizes", "counts")
        files.write_text(options.summary, as_json({**{key: report[key] for key in kept}, "rules": rules}))
    grave = [f for f in findings if SEVERITIES.index(f.rule.severity) <= SEVERITIES.index(options.severity)]
    if grave:
        named = some(sorted({finding.rule.id for finding in grave}))
        raise GateError(f"{options.model}: {len(grave)} findings of severity {options.severity} or above ({named})")


def parse_batches(given: str) -> list[int]:
    """Batch sizes, ascending and each once. Raises ConfigError."""
    parts = [part for part in given.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"--batch-sizes {given!r} names none")
    return sorted({parse_integer("--batch-sizes", part, 0, 1, 1024) for part in parts})


def described(graph: Graph | None) -> dict[str, Any]:
    if graph is None:
        return {}
    nodes = Counter(node.op_type for node in graph.nodes if node.op_type != "Constant")
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in graph.model.opset_import},
        "ir_version": graph.model.ir_version,
        "nodes": dict(sorted(nodes.items())),
    }


def as_dict(finding: LintFinding) -> dict[str, Any]:
    rule = finding.rule
    return {
        "rule": rule.id,
        "severity": rule.severity,
        "title": rule.title,
        "found": finding.what,
        "count": len(finding.nodes) or 1,
        "nodes": list(finding.nodes[:_PLACES]),
        "cost": {str(batch): {"elements": c.elements, "bytes": c.bytes} for batch, c in finding.cost.items()},
        "why": rule.why,
        "do": rule.do,
        "basis": rule.basis,
        "source": rule.source,
    }


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2) + "\n"


def counted(report: dict[str, Any]) -> str:
    return ", ".join(f"{number} {one}{'' if number == 1 else 's'}" for one, number in report["counts"].items())


def text(report: dict[str, Any]) -> str:
    """For the terminal: a line per finding, and under it what it costs, why, and what to do."""
    lines = [f"{report['model']}: {report['bytes']} bytes"]
    if "nodes" in report:
        opsets = " ".join(f"{domain} {version}" for domain, version in report["opset"].items())
        sizes = ", ".join(map(str, report["batch_sizes"]))
        nodes = sum(report["nodes"].values())
        lines[0] += f", {nodes} nodes, opset {opsets}, IR {report['ir_version']}; batch sizes {sizes}"
    for finding in report["findings"]:
        times = f"{finding['count']} x " if finding["nodes"] else ""
        more = f" and {finding['count'] - 3} more" if finding["count"] > 3 else ""
        where = f" ({', '.join(finding['nodes'][:3])}{more})" if finding["nodes"] else ""
        lines.append(f"{finding['severity']} {finding['rule']}: {finding['title']}: {times}{finding['found']}{where}")
        if finding["cost"]:
            costs = (_cost(size, Cost(**one)) for size, one in finding["cost"].items())
            lines.append(f"    cost: {'; '.join(costs)}")
        lines.append(f"    why: {finding['why']}")
        lines.append(f"    do: {finding['do']}")
        basis = finding["basis"] if finding["basis"] != DOCUMENTED else ""
        lines.append(f"    source: {', '.join(filter(None, (finding['source'], basis)))}")
    lines += _stats_text(report["stats"]) if "stats" in report else []
    return "\n".join([*lines, counted(report)]) + "\n"


def _cost(size: str, cost: Cost) -> str:
    return f"bs {size} {cost.elements} elements, {cost.bytes / 1e6:.2f} MB"


def _stats_text(stats: dict[str, Any]) -> list[str]:
    lines = [f"{stats['parameters']} parameters, {stats['parameter_bytes'] / 1e6:.2f} MB"]
    for size, one in stats["batches"].items():
        total = f"{one['flop'] / 1e9:.3f} GFLOP, {one['bytes'] / 1e6:.1f} MB moved, {one['intensity']} FLOP per byte"
        lines.append(f"batch size {size}: {total}")
        for name, entry in one["operators"].items():
            counts = f"{entry['nodes']:>5} {entry['flop'] / 1e9:>12.3f} {entry['bytes'] / 1e6:>12.2f}"
            lines.append(f"    {name:<16}{counts} {entry['intensity']:>10.2f}")
        for name, bound in one["devices"].items():
            peak = f"{bound['peak_tflops']} TFLOPS, {bound['peak_gb_per_s']} GB/s"
            lines.append(
                f"    on {name} ({peak}): at least {bound['least_seconds'] * 1000:.3f} ms, at most "
                f"{_rate(bound['most_rows_per_second'])} rows/s; with nothing fused "
                f"{bound['unfused_seconds'] * 1000:.3f} ms, {_rate(bound['unfused_rows_per_second'])} rows/s"
            )
    sources = {name: bound["source"] for one in stats["batches"].values() for name, bound in one["devices"].items()}
    return [*lines, *(f"{name}: {source}" for name, source in sources.items())]


def _rate(rows: float | None) -> str:
    return "?" if rows is None else f"{rows:.1f}"


def sarif(report: dict[str, Any]) -> str:
    """SARIF 2.1.0, for tools that show findings beside code. A node is a logical location."""
    used = [rule for rule in RULES if any(finding["rule"] == rule.id for finding in report["findings"])]
    path = Path(report["model"])
    uri = path.as_uri() if path.is_absolute() else quote(report["model"])
    rules = [
        {
            "id": rule.id,
            "shortDescription": {"text": rule.title},
            "fullDescription": {"text": rule.why},
            "help": {"text": rule.do},
            "defaultConfiguration": {"level": rule.severity},
            "properties": {"basis": rule.basis, "source": rule.source},
        }
        for rule in used
    ]
    results = [
        {
            "ruleId": finding["rule"],
            "ruleIndex": [rule.id for rule in used].index(finding["rule"]),
            "level": finding["severity"],
            "message": {"text": f"{finding['title']}: {finding['found']} ({finding['count']}). {finding['do']}"},
            "locations": [
                {
                    "physicalLocation": {"artifactLocation": {"uri": uri}},
                    **(
                        {"logicalLocations": [{"fullyQualifiedName": name} for name in finding["nodes"]]}
                        if finding["nodes"]
                        else {}
                    ),
                }
            ],
            "properties": {"count": finding["count"], "cost": finding["cost"]},
        }
        for finding in report["findings"]
    ]
    driver = {"name": "deberta-ascend lint-onnx", "rules": rules}
    artifact = {"location": {"uri": uri}, "length": report["bytes"], "hashes": {"sha-256": report["sha256"]}}
    properties = {"stats": report["stats"]} if "stats" in report else {}
    run = {"tool": {"driver": driver}, "artifacts": [artifact], "results": results, "properties": properties}
    return as_json({"$schema": _SARIF, "version": "2.1.0", "runs": [run]})


if __name__ == "__main__":
    sys.exit(run_stage(main))
