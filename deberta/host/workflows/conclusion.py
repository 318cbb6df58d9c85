"""What an acceptance came to: its text with the summary last, its document, JUnit's XML, a CI step's summary."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator, Optional, Sequence
from xml.etree import ElementTree

from msgspec import field

from deberta.core import contract, files
from deberta.core.differences import SLOWER, ReportDifference
from deberta.core.errors import GateError, some, visible
from deberta.core.report import GateCheck, Report
from deberta.core.schema import Schema
from deberta.host.plan.plan import Plan
from deberta.host.report.verification import VERDICTS
from deberta.host.user_files import named_paths
from deberta.host.workflows import diff

STATUSES = ("passed", "failed", "not judged")
SHORT = {"match": "M", "mismatch": "MM"}
JUNIT = "deberta-ascend acceptance"
_XML = '<?xml version="1.0" encoding="utf-8"?>\n'
_HEAD = f'{_XML}<testsuites name="{JUNIT}"'  # by which a file is known to be ours


class AcceptedAccuracy(Schema):
    """`user_supplied`: counted from outputs, or of a model, that the user put there."""

    batch_size: int
    version: str
    correct: int
    rows: int
    accuracy: float
    user_supplied: bool


class AcceptedThroughput(Schema):
    """Samples per second of a performance run of `loops` inferences."""

    batch_size: int
    version: str
    fps: float
    loops: int
    user_supplied: bool


class ReportFiles(Schema):
    """Paths in the workspace. `kept`: the folder of the acceptance that no later command changes."""

    json: str
    md: str
    html: str
    bom: str
    kept: str


class AcceptanceDocument(Schema):
    """What `acceptance --json` prints.

    `limit`: above 0 the first rows alone were run. `summary`: the last line of the text. `baseline`: what differs from
    the report that --baseline names. `slow_devices`: those whose performance run was slower than other devices' beyond
    the noise, a line for each.
    """

    profile: str
    backend: str
    limit: int
    loops: int
    verdict: str
    why_not_accepted: list[str]
    accuracy: list[AcceptedAccuracy]
    throughput: list[AcceptedThroughput]
    gates: list[GateCheck]
    workspace: str
    report: ReportFiles
    summary: str
    baseline: Optional[ReportDifference] = None
    slow_devices: list[str] = field(default_factory=list)


def document(workspace: Path, plan: Plan, report: Report, kept: str = "") -> AcceptanceDocument:
    """The result of an acceptance, by its report."""
    body, verdict, artifacts = report.body, report.verdict, plan.artifacts
    assert verdict is not None  # of an acceptance
    return AcceptanceDocument(
        profile=body.profile,
        backend=body.backend,
        limit=body.limit,
        loops=report.measured.loops,
        verdict=verdict.verdict,
        why_not_accepted=verdict.why_not_accepted,
        accuracy=[
            AcceptedAccuracy(
                batch_size=cell.batch_size,
                version=cell.version,
                correct=cell.correct,
                rows=cell.rows,
                accuracy=cell.accuracy,
                user_supplied=contract.is_supplied(cell.origin),
            )
            for cell in body.cells
        ],
        throughput=[
            AcceptedThroughput(
                batch_size=run.batch_size,
                version=run.version,
                fps=run.fps,
                loops=run.loops,
                user_supplied=contract.is_supplied(run.origin),
            )
            for run in report.measured.performances
        ],
        gates=verdict.gates,
        workspace=str(workspace),
        report=ReportFiles(
            json=str(artifacts.report("json")),
            md=str(artifacts.report("md")),
            html=str(artifacts.report("html")),
            bom=str(artifacts.bom()),
            kept=kept,
        ),
        summary=summary(report, openable(workspace / artifacts.report("html"))),
        baseline=report.measured.baseline,
        slow_devices=list(_slow_devices(report)),
    )


def _slow_devices(report: Report) -> Iterator[str]:
    for runs in report.measured.device_runs:
        for device in (device for device in runs.devices if device.conclusion == SLOWER):
            noise = f", and the noise is {100 * device.noise:.1f} %" if device.noise is not None else ""
            yield (
                f"{device.device or 'the first device'}: {device.fps:.3f} fps at bs {runs.batch_size} {runs.version}, "
                f"{100 * device.change:+.1f} % beside {runs.reference or 'the first device'}{noise}"
            )


def summary(report: Report, page: str) -> str:
    """An acceptance in one line: a failed gate first, then verdict, accuracy, throughput, gates and the page.

    The accuracy of a version is the lowest of all batch sizes; the throughput is the highest.
    """
    body, verdict, runs = report.body, report.verdict, report.measured.performances
    assert verdict is not None
    failed = failures(verdict.gates)
    first = f"{failed[0]}{f' and {len(failed) - 1} more' if len(failed) > 1 else ''}" if failed else ""
    loops = [f"{report.measured.loops} loops"] if runs else []
    limit = [f"first {body.limit} rows"] if body.limit else []
    about = ", ".join([body.backend, *limit, *loops, body.profile])
    parts = [f"{verdict.verdict}{f': {first}' if failed else ''} ({about})"]
    for version in body.versions:
        if shares := [cell.accuracy for cell in body.cells if cell.version == version]:
            parts.append(f"{SHORT[version]} {100 * min(shares):.2f}")
    if runs:
        best = max(runs, key=lambda run: run.fps)
        parts.append(f"{best.fps:.1f} fps at bs {best.batch_size}")
    counts = {status: sum(gate.status == status for gate in verdict.gates) for status in STATUSES}
    unjudged = f", {counts['not judged']} not judged" if counts["not judged"] else ""
    parts.append(f"{counts['passed']}/{counts['passed'] + counts['failed']} gates{unjudged}")
    return "  ".join([*parts, page])


def failures(gates: Sequence[GateCheck]) -> list[str]:
    return [f"{gate.gate} ({gate.of})" for gate in gates if gate.status == "failed"]


def openable(path: Path) -> str:
    """A path as the user can open it from where they stand: relative if it is below that folder."""
    with contextlib.suppress(OSError, ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def text(result: AcceptanceDocument) -> str:
    """What was measured, the verdict and why; the summary is the last line."""
    partial = f", first {result.limit} rows only" if result.limit else ""
    figures: dict[int, list[str]] = {}
    for cell in result.accuracy:
        share = f"{cell.version} {cell.correct}/{cell.rows}{_whose(cell.user_supplied)}{partial}"
        figures.setdefault(cell.batch_size, []).append(share)
    for run in result.throughput:
        fps = f"{run.version} {run.fps:.3f} fps ({run.loops} loops){_whose(run.user_supplied)}"
        figures.setdefault(run.batch_size, []).append(fps)
    lines = [f"bs {size}: {'; '.join(figures[size])}" for size in sorted(figures)]
    gates = result.gates
    counts = [f"{sum(gate.status == status for gate in gates)} {status}" for status in STATUSES]
    lines += [f"slow device: {text}" for text in result.slow_devices]
    lines.append(f"gates: {', '.join(counts)}")
    lines += [f"  failed: {gate.gate} ({gate.of}): {_found(gate)}" for gate in gates if gate.status == "failed"]
    unjudged: dict[tuple[str, str], list[str]] = {}
    for gate in gates:
        if gate.status == "not judged":
            unjudged.setdefault((gate.gate, gate.reason), []).append(gate.of)
    for (name, reason), about in unjudged.items():
        more = f"; {len(about) - 3} more" if len(about) > 3 else ""
        lines.append(f"  not judged: {name} ({'; '.join(about[:3])}{more}): {reason}")
    lines.append(f"verdict: {statement(result.verdict, result.why_not_accepted, gates)}")
    lines += diff.lines(result.baseline) if result.baseline else []
    report = result.report
    lines += [f"  {path}" for path in (report.json, report.md, report.html, report.bom)]
    lines += [f"kept in {report.kept}"] if report.kept else []
    return "\n".join([*lines, result.summary])


def _whose(user_supplied: bool) -> str:
    return f" ({contract.SUPPLIED})" if user_supplied else ""


def _found(gate: GateCheck) -> str:
    reason = f"; {gate.reason}" if gate.reason else ""
    return f"found {gate.actual or 'nothing'}, required {gate.required}{reason}"


def statement(word: str, why: Sequence[str], gates: Sequence[GateCheck]) -> str:
    """The verdict and what it means, in words that never take one for another."""
    if word == "accepted":
        return "accepted - every gate passes"
    if word == "checked":
        judged = any(gate.status == "not judged" for gate in gates)
        passed = "the gates that were judged pass" if judged else "the gates pass"
        return f"checked - {passed}, and this is no acceptance: {'; '.join(why)}"
    return f"failed - this is no acceptance: {'; '.join(why)}"


def check(result: AcceptanceDocument, require: str = "") -> None:
    """Raise GateError if a gate failed, or the verdict is less than the required one, or it is worse than before."""
    if failed := failures(result.gates):
        count = "a gate" if len(failed) == 1 else f"{len(failed)} gates"
        raise GateError(f"{count} failed: {some(failed)}. See the report")
    if require == diff.NO_WORSE_REQUIRED:
        diff.check(result.baseline, require)
    elif require and VERDICTS.index(result.verdict) < VERDICTS.index(require):
        why = some(result.why_not_accepted, 3)
        raise GateError(f"--require {require}: the verdict is {result.verdict} ({why}). See the report")


def prepare_junit(path: Path) -> None:
    """Remove what an earlier acceptance wrote there: it must not be taken for this one's.

    Raises DataError for what no acceptance wrote, and ConfigError.
    """
    if named_paths.is_replaceable("--junit", path, [_HEAD], "acceptance"):
        files.remove(path)


def junit(result: AcceptanceDocument) -> str:
    """JUnit's XML, by Jenkins' junit-10.xsd: a test case for each gate check, with what a failed one required."""
    name = f"{result.profile} on {result.backend}"
    counts = {
        "tests": str(len(result.gates)),
        "failures": str(len(failures(result.gates))),
        "errors": "0",
    }
    skipped = str(sum(gate.status == "not judged" for gate in result.gates))
    root = ElementTree.Element("testsuites", {"name": JUNIT, **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, "skipped": skipped, "time": "0"})
    for gate in result.gates:
        about = {"classname": f"{name}.{gate.gate}", "name": f"{gate.gate}: {gate.of}", "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", {key: visible(value) for key, value in about.items()})
        if gate.status == "failed":
            failure = ElementTree.SubElement(case, "failure", {"message": visible(_found(gate)), "type": gate.gate})
            failure.text = visible(f"{gate.gate} ({gate.of}): {_found(gate)}")
        elif gate.status != "passed":
            ElementTree.SubElement(case, "skipped", {"message": visible(gate.reason)})
    return f"{_XML}{ElementTree.tostring(root, encoding='unicode')}\n"


def step_summary(result: AcceptanceDocument) -> str:
    """The short form of report.md, for a CI step's page: verdict, failed gates, figures."""
    lines = [
        f"### {result.verdict}: profile {_cell(result.profile)} on {result.backend}",
        "",
        _cell(result.summary),
        "",
    ]
    lines += [f"- {_cell(reason)}" for reason in result.why_not_accepted]
    if failed := [gate for gate in result.gates if gate.status == "failed"]:
        lines += ["", "| failed gate | of | found | required |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_cell, (g.gate, g.of, g.actual, g.required)))} |" for g in failed]
    lines += ["", "| bs | version | accuracy | fps |", "|---|---|---|---|"]
    shares = {(cell.batch_size, cell.version): f"{100 * cell.accuracy:.2f} %" for cell in result.accuracy}
    fps = {(run.batch_size, run.version): f"{run.fps:.1f}" for run in result.throughput}
    for key in sorted({*shares, *fps}):
        lines.append(f"| {key[0]} | {key[1]} | {shares.get(key, '')} | {fps.get(key, '')} |")
    return "\n".join([*lines, "", ""])


def _cell(text: str) -> str:
    """Text from outside in a table of Markdown."""
    escaped = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


def append_summary(path: Optional[Path], result: AcceptanceDocument) -> None:
    """Append the short form to the file of a CI step's summary, if there is one. Raises OSError."""
    if path is not None:
        with open(path, "a", encoding="utf-8") as page:
            page.write(step_summary(result))
