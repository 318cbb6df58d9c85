"""lint-onnx: an offline check of an ONNX file against what is known of ATC and the 310P in CANN 5.1.RC2.

It reads the file alone: no CANN, no device. Each finding has its rule and the rule's source, its nodes, the elements
and bytes that they move in one inference at each batch size, and what to do. The rules are in rules.py.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deberta.core import files
from deberta.core.contract import parse_integer
from deberta.core.errors import ConfigError, GateError, many, run_stage, some, visible
from deberta.stages import arguments
from deberta.stages.arguments import Argument, file, flag, one_of
from deberta.stages.lint import checks, cost
from deberta.stages.lint.checks import LintFinding
from deberta.stages.lint.graph import Graph, broken_is_data_error, load_graph, too_large
from deberta.stages.lint.rules import DOCUMENTED, RULES, SEVERITIES

_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_PLACES = 50  # nodes of one finding that the JSON and SARIF name


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "model sequence_length summary",
        batch_sizes=Argument("commas between; default: 1,8,64", parse_batches, default=[1, 8, 64]),
        format=Argument("of the report: text (default), json or sarif", one_of(tuple(_FORMATS)), default="text"),
        output=file("write there instead of to standard output", required=False),
        severity=Argument("fail from this severity on; default: error", one_of(SEVERITIES), default="error"),
        stats=flag("count parameters, FLOP and bytes too"),
        device=Argument("with --stats: 310P, cpu or NAME=TFLOPS,GB/s[,BYTES PER FLOAT]", default=["310P"], many=True),
    )
    batches = options.batch_sizes
    devices = [cost.parse_device(text) for text in options.device] if options.stats else []
    stats: dict[str, Any] = {}
    with broken_is_data_error(options.model):
        graph = None if too_large(options.model) else load_graph(options.model)
        if graph is None:
            findings = [checks.size_finding(options.model.stat().st_size)]
        else:
            batches = [graph.fixed_batch] if graph.fixed_batch else batches
            findings = checks.check(graph, batches, options.sequence_length)
            stats = {"stats": cost.statistics(graph, batches, devices)} if options.stats else {}
    report = {
        "model": options.model.as_posix(),
        "sha256": files.sha256_of(options.model),
        "bytes": options.model.stat().st_size,
        **(describe_graph(graph) if graph else {}),
        "batch_sizes": batches,
        "counts": {level: sum(finding.rule.severity == level for finding in findings) for level in SEVERITIES},
        "findings": [as_dict(finding) for finding in findings],
        **stats,
    }
    text = visible(_FORMATS[options.format](report))
    if options.output:
        files.write_text(options.output, text)
        print(f"{options.output}: {counts_text(report)}", flush=True)
    else:
        print(text, end="", flush=True)
    summary = {key: report[key] for key in ("sha256", "bytes", "batch_sizes", "counts")}
    summary["rules"] = dict(sorted(Counter(finding.rule.id for finding in findings).items()))
    arguments.write_summary(options.summary, summary)
    grave = [f for f in findings if SEVERITIES.index(f.rule.severity) <= SEVERITIES.index(options.severity)]
    if grave:
        ids = some(sorted({finding.rule.id for finding in grave}))
        raise GateError(f"{options.model}: {len(grave)} findings of severity {options.severity} or above ({ids})")


def parse_batches(option: str, text: str) -> list[int]:
    """Batch sizes, ascending and each once. Raises ConfigError."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{option} {text!r} names none")
    return sorted({parse_integer(option, part, 0, 1, 1024) for part in parts})


def describe_graph(graph: Graph) -> dict[str, Any]:
    nodes = Counter(node.op_type for node in graph.nodes if node.op_type != "Constant")
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in graph.model.opset_import},
        "ir_version": graph.model.ir_version,
        "nodes": dict(sorted(nodes.items())),
    }


def as_dict(finding: LintFinding) -> dict[str, Any]:
    """The report's object of one finding."""
    rule = finding.rule
    return {
        "rule": rule.id,
        "severity": rule.severity,
        "title": rule.title,
        "found": finding.detail,
        "count": len(finding.nodes) or 1,
        "nodes": list(finding.nodes[:_PLACES]),
        "cost": {str(batch): moved._asdict() for batch, moved in finding.cost.items()},
        "why": rule.why,
        "do": rule.do,
        "basis": rule.basis,
        "source": rule.source,
    }


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2) + "\n"


def counts_text(report: dict[str, Any]) -> str:
    return ", ".join(many(count, level) for level, count in report["counts"].items())


def as_text(report: dict[str, Any]) -> str:
    """For the terminal: a line per finding, and under it its cost, why it matters, and what to do."""
    lines = [f"{report['model']}: {report['bytes']} bytes"]
    if "nodes" in report:
        opsets = " ".join(f"{domain} {version}" for domain, version in report["opset"].items())
        sizes = ", ".join(map(str, report["batch_sizes"]))
        nodes = sum(report["nodes"].values())
        lines[0] += f", {nodes} nodes, opset {opsets}, IR {report['ir_version']}; batch sizes {sizes}"
    for finding in report["findings"]:
        count, names = finding["count"], finding["nodes"]
        more = f" and {count - 3} more" if count > 3 else ""
        times, where = (f"{count} x ", f" ({', '.join(names[:3])}{more})") if names else ("", "")
        lines.append(f"{finding['severity']} {finding['rule']}: {finding['title']}: {times}{finding['found']}{where}")
        moved = finding["cost"].items()
        costs = [f"bs {size} {sums['elements']} elements, {sums['bytes'] / 1e6:.2f} MB" for size, sums in moved]
        lines += [f"    cost: {'; '.join(costs)}"] if costs else []
        lines += [f"    why: {finding['why']}", f"    do: {finding['do']}"]
        basis = finding["basis"] if finding["basis"] != DOCUMENTED else ""
        lines.append(f"    source: {', '.join(filter(None, (finding['source'], basis)))}")
    lines += _stats_text(report["stats"]) if "stats" in report else []
    return "\n".join([*lines, counts_text(report)]) + "\n"


def _stats_text(stats: dict[str, Any]) -> list[str]:
    lines = [f"{stats['parameters']} parameters, {stats['parameter_bytes'] / 1e6:.2f} MB"]
    sources: dict[str, str] = {}
    for size, batch in stats["batches"].items():
        flop, moved = f"{batch['flop'] / 1e9:.3f} GFLOP", f"{batch['bytes'] / 1e6:.1f} MB moved"
        lines.append(f"batch size {size}: {flop}, {moved}, {batch['intensity']} FLOP per byte")
        for name, entry in batch["operators"].items():
            counts = f"{entry['nodes']:>5} {entry['flop'] / 1e9:>12.3f} {entry['bytes'] / 1e6:>12.2f}"
            lines.append(f"    {name:<16}{counts} {entry['intensity']:>10.2f}")
        for name, bound in batch["devices"].items():
            sources[name] = bound["source"]
            lines.append(
                f"    on {name} ({bound['peak_tflops']} TFLOPS, {bound['peak_gb_per_s']} GB/s): at least"
                f" {bound['least_seconds'] * 1000:.3f} ms, at most {_rate(bound['most_rows_per_second'])} rows/s; with"
                f" only matrix products {bound['fused_seconds'] * 1000:.3f} ms,"
                f" {_rate(bound['fused_rows_per_second'])} rows/s; with"
                f" nothing fused {bound['unfused_seconds'] * 1000:.3f} ms,"
                f" {_rate(bound['unfused_rows_per_second'])} rows/s"
            )
    return [*lines, *(f"{name}: {source}" for name, source in sources.items())]


def _rate(rows: float | None) -> str:
    return "?" if rows is None else f"{rows:.1f}"


def as_sarif(report: dict[str, Any]) -> str:
    """SARIF 2.1.0, for tools that show findings beside code. A node is a logical location."""
    broken = [rule for rule in RULES if any(finding["rule"] == rule.id for finding in report["findings"])]
    ids = [rule.id for rule in broken]
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
        for rule in broken
    ]
    results = []
    for finding in report["findings"]:
        location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}}}
        if finding["nodes"]:
            location["logicalLocations"] = [{"fullyQualifiedName": name} for name in finding["nodes"]]
        message = f"{finding['title']}: {finding['found']} ({finding['count']}). {finding['do']}"
        results.append(
            {
                "ruleId": finding["rule"],
                "ruleIndex": ids.index(finding["rule"]),
                "level": finding["severity"],
                "message": {"text": message},
                "locations": [location],
                "properties": {"count": finding["count"], "cost": finding["cost"]},
            }
        )
    driver = {"name": "deberta-ascend lint-onnx", "rules": rules}
    artifact = {"location": {"uri": uri}, "length": report["bytes"], "hashes": {"sha-256": report["sha256"]}}
    properties = {"stats": report["stats"]} if "stats" in report else {}
    run = {"tool": {"driver": driver}, "artifacts": [artifact], "results": results, "properties": properties}
    return as_json({"$schema": _SARIF, "version": "2.1.0", "runs": [run]})


_FORMATS = {"text": as_text, "json": as_json, "sarif": as_sarif}

if __name__ == "__main__":
    sys.exit(run_stage(main))
