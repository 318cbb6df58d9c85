"""Makes a report's numbers and pages again, beside the ones that are kept, and says where they differ.

Accuracy texts come from the outputs, what is said about the data from the tsv, report.json from its job and every file
that the job names, the pages from report.json. All of it goes into a scratch folder; the kept files are only read. The
result is a JSON file: {"findings": [{"where": file, "what": text}], "files": n, "numbers": n}.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rfc8785

from deberta.core import files
from deberta.core.errors import DebertaError, one_line, run_stage
from deberta.core.progress import Progress
from deberta.stages.data import check_data
from deberta.stages.inference import postprocess
from deberta.stages.report import assess, render

SHOWN = 20  # differences of one file that are named; the others are counted
UNRECORDED = "no record"  # of a cell: nothing says of which outputs its accuracy text is
Stage = Callable[[Sequence[str]], None]


@dataclass
class Result:
    """What was compared: kept files, numbers in them, and where they differ."""

    findings: list[dict[str, str]] = field(default_factory=list)
    files: int = 0
    numbers: int = 0

    def add(self, where: object, differences: Sequence[str]) -> None:
        self.findings += [{"where": str(where), "what": text} for text in differences[:SHOWN]]
        if len(differences) > SHOWN:
            self.findings.append({"where": str(where), "what": f"and {len(differences) - SHOWN} more differences"})


def differences(stored: Any, recomputed: Any, path: str = "") -> Iterator[str]:
    """Every place where two parsed JSON values differ, by its path, as in `body.cells[3].correct`."""
    if isinstance(stored, dict) and isinstance(recomputed, dict):
        for key in dict.fromkeys([*recomputed, *stored]):
            place = f"{path}.{key}" if path else str(key)
            if key not in stored or key not in recomputed:
                yield f"{place}: only {'recomputed' if key in recomputed else 'stored'}"
            else:
                yield from differences(stored[key], recomputed[key], place)
    elif isinstance(stored, list) and isinstance(recomputed, list):
        if len(stored) != len(recomputed):
            yield f"{path}: stored {len(stored)} entries, recomputed {len(recomputed)}"
        for index, (before, after) in enumerate(zip(stored, recomputed, strict=False)):
            yield from differences(before, after, f"{path}[{index}]")
    elif type(stored) is not type(recomputed) or stored != recomputed:
        yield f"{path}: stored {_short(stored)}, recomputed {_short(recomputed)}"


def numbers(content: Any) -> int:
    """How many numbers a parsed JSON value holds."""
    if isinstance(content, Mapping):
        return sum(map(numbers, content.values()))
    if isinstance(content, list):
        return sum(map(numbers, content))
    return int(isinstance(content, (int, float)) and not isinstance(content, bool))


def compare_text(stored: Path, made: Path) -> list[str]:
    """The lines in which two text files differ; empty if their bytes are the same."""
    before, after = stored.read_bytes(), made.read_bytes()
    if before == after:
        return []
    ours, theirs = (text.decode("utf-8", errors="replace").split("\n") for text in (before, after))
    found = [
        f"line {number}: stored {_near(old, new)}, recomputed {_near(new, old)}"
        for number, (old, new) in enumerate(zip(ours, theirs, strict=False), 1)
        if old != new
    ]
    if len(ours) != len(theirs):
        found.append(f"stored {len(ours)} lines, recomputed {len(theirs)}")
    return found or ["other bytes for the same text"]


def _near(text: str, other: str) -> str:
    """A text, of a long one the part from shortly before it differs from another."""
    pairs = enumerate(zip(text, other, strict=False))
    same = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(text), len(other)))
    return _short(text if len(text) <= 100 else f"...{text[max(0, same - 30) : same + 70]}...")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _compare_json(result: Result, stored: Path, made: Path) -> None:
    kept, again = (json.loads(path.read_text(encoding="utf-8")) for path in (stored, made))
    found = list(differences(kept, again))
    if not found and stored.read_bytes() != made.read_bytes():
        found = ["the same content written otherwise"]
    result.add(stored, found)
    result.files += 1
    result.numbers += numbers(again)


def _again(result: Result, where: Path, stage: Stage, arguments: Sequence[object], compare: Callable[[], None]) -> None:
    """Run a stage's main, which may not take part in the comparison at all if what it reads is damaged."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            stage([str(argument) for argument in arguments])
        compare()
    except DebertaError as error:
        result.add(where, [f"cannot be made again: {one_line(str(error))}"])
    except OSError as error:
        result.add(where, [f"cannot be made again: {error.filename}: {error.strerror}"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # JSON of another shape
        result.add(where, [f"cannot be made again: {type(error).__name__}: {one_line(str(error))}"])


def recompute(
    job_path: Path, report: Path, markdown: Path, html: Path, tokenizer: Path | None, config: Path | None, scratch: Path
) -> Result:
    """Make everything again and compare. Without a tokenizer and a config, the data are not looked at again.

    A job that cannot be read is a finding too. The report must be there.
    """
    result = Result()
    try:
        job = json.loads(job_path.read_text(encoding="utf-8"))
        jobs = list(_jobs(result, job, tokenizer, config, scratch))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        result.add(job_path, [f"cannot be read: {type(error).__name__}: {one_line(str(error))}"])
        return result
    made, pages = scratch / "again.json", scratch / "pages"
    made_markdown, made_html = pages / markdown.name, pages / html.name
    pages.mkdir()
    beside = Path(shutil.copyfile(report, pages / report.name))  # a page names the report.json that lies beside it
    jobs.append(
        lambda: _again(
            *(result, report, assess.main, ["--job", job_path, "--output", made]),
            lambda: _compare_json(result, report, made),
        )
    )
    jobs.append(lambda: check_body(result, report))

    def compare_pages() -> None:
        for stored, again in ((markdown, made_markdown), (html, made_html)):
            result.add(stored, compare_text(stored, again))
            result.files += 1

    # Of the report that is kept, so that each file is judged for itself.
    rendering = ["--report", beside, "--markdown", made_markdown, "--html", made_html]
    jobs.append(lambda: _again(result, markdown, render.main, rendering, compare_pages))
    progress = Progress("recomputing", len(jobs), "files")
    for index, one in enumerate(jobs, 1):
        one()
        progress.update(index)
    return result


def _jobs(
    result: Result, job: Mapping[str, Any], tokenizer: Path | None, config: Path | None, scratch: Path
) -> Iterator[Callable[[], None]]:
    """What is to be made again of the data and the outputs."""
    limit, expected = job["limit"], job["profile"]["rows"]

    def counts(version: str) -> list[object]:
        rows = ["--rows", expected[version]] if expected.get(version) is not None else []
        return [*(["--limit", limit] if limit else []), *rows]

    for version, stored in job["sentinels"].items() if tokenizer and config else ():
        made = scratch / f"sentinel_{version}.json"
        given = ["--data", job["data"][version], "--tokenizer", tokenizer, "--config", config, "--version", version]
        arguments = [*given, "--output", made, *counts(version)]
        yield _later(result, Path(stored), check_data.main, arguments, [(Path(stored), made)])
    for index, cell in enumerate(job["cells"]):
        if cell["origin"] == UNRECORDED:
            continue
        text, version = Path(cell["evaluation"]), cell["version"]
        made = scratch / f"eval_{index}.txt"
        given = ["--outputs", cell["outputs"], "--data", job["data"][version], "--bs", cell["batch_size"]]
        arguments = [*given, "--output", made, "--version", version, *counts(version)]
        pairs = [(text, made), (text.with_suffix(".json"), made.with_suffix(".json"))]
        yield _later(result, text, postprocess.main, arguments, pairs)


def _later(
    result: Result, where: Path, stage: Stage, arguments: Sequence[object], pairs: Sequence[tuple[Path, Path]]
) -> Callable[[], None]:
    def compare() -> None:
        for stored, made in pairs:
            if stored.suffix == ".json":
                _compare_json(result, stored, made)
            else:
                result.add(stored, compare_text(stored, made))
                result.files += 1
                result.numbers += len(made.read_text(encoding="utf-8").splitlines())  # a number a line

    return lambda: _again(result, where, stage, arguments, compare)


def check_body(result: Result, report: Path) -> None:
    """`body_sha256` must be that of the body in RFC 8785's canonical form."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        found = hashlib.sha256(rfc8785.dumps(content["body"])).hexdigest()
        if content["body_sha256"] != found:
            result.add(report, [f"body_sha256: stored {_short(content['body_sha256'])}, of the stored body {found}"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        result.add(report, [f"body_sha256 cannot be checked: {type(error).__name__}: {one_line(str(error))}"])


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deberta.stages.verify.recompute", description="a report, made again"
    )
    parser.add_argument("--job", type=Path, required=True, help="report_job.json")
    parser.add_argument("--report", type=Path, required=True, help="the report.json that is kept")
    parser.add_argument("--markdown", type=Path, required=True, help="its report.md")
    parser.add_argument("--html", type=Path, required=True, help="its report.html")
    parser.add_argument("--tokenizer", type=Path, help="with --config: look at the data again too")
    parser.add_argument("--config", type=Path, help="the model's config")
    parser.add_argument("--also", type=Path, nargs=2, action="append", default=[], help="compare JSON: KEPT MADE")
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder")
    parser.add_argument("--output", type=Path, required=True, help="the result, JSON")
    options = parser.parse_args(argv)
    result = recompute(
        *(options.job, options.report, options.markdown, options.html),
        *(options.tokenizer, options.config, options.scratch),
    )
    for kept, made in options.also:
        _compare_json(result, kept, made)
    files.write_text(options.output, json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
