"""Makes a report's numbers and pages again, beside the ones that are kept, and says where they differ.

Accuracy texts come from the outputs, what is said about the data from the tsv, report.json from its job and every file
that the job names, the pages from report.json. All of it goes into a scratch folder; the kept files are only read. The
result is a JSON file: {"findings": [{"where": file, "what": text}], "files": n, "numbers": n}.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deberta.core import files, schema
from deberta.core.differences import differences, shown
from deberta.core.errors import DebertaError, one_line, run_stage
from deberta.core.job import EvaluationFiles, Job, LabelChangeFiles
from deberta.core.progress import track
from deberta.stages import arguments
from deberta.stages.data import check_data, token_counts
from deberta.stages.inference import label_changes, postprocess, throughput
from deberta.stages.report import assess, canonical, render

SHOWN = 20  # differences of one file that are named; the others are counted
UNRECORDED = "no record"  # of a cell: nothing says of which outputs its accuracy text is
Stage = Callable[[Sequence[str]], None]


@dataclass
class Result:
    """What was compared: kept files, numbers in them, and where they differ."""

    findings: list[dict[str, str]] = field(default_factory=list)
    files: int = 0
    numbers: int = 0

    def add(self, where: object, texts: Sequence[str]) -> None:
        self.findings += [{"where": str(where), "what": text} for text in texts[:SHOWN]]
        if len(texts) > SHOWN:
            self.findings.append({"where": str(where), "what": f"and {len(texts) - SHOWN} more differences"})


def numbers(content: Any) -> int:
    """How many numbers a parsed JSON value holds."""
    if isinstance(content, (dict, list)):
        return sum(map(numbers, content.values() if isinstance(content, dict) else content))
    return int(isinstance(content, (int, float)) and not isinstance(content, bool))


def compare_text(stored: Path, recomputed: Path) -> list[str]:
    """The lines in which two text files differ; empty if their bytes are the same."""
    before, after = files.read_bytes(stored), files.read_bytes(recomputed)
    if before == after:
        return []
    old_lines, new_lines = (text.decode("utf-8", errors="replace").split("\n") for text in (before, after))
    texts = [
        f"line {number}: stored {_near(old, new)}, recomputed {_near(new, old)}"
        for number, (old, new) in enumerate(zip(old_lines, new_lines, strict=False), 1)
        if old != new
    ]
    if len(old_lines) != len(new_lines):
        texts.append(f"stored {len(old_lines)} lines, recomputed {len(new_lines)}")
    return texts or ["other bytes for the same text"]


def _near(text: str, compared: str) -> str:
    """A text, of a long one the part from shortly before it differs from the compared one."""
    pairs = enumerate(zip(text, compared, strict=False))
    same = next((at for at, (left, right) in pairs if left != right), min(len(text), len(compared)))
    return shown(text if len(text) <= 100 else f"...{text[max(0, same - 30) : same + 70]}...")


def compare(result: Result, stored: Path, recomputed: Path) -> None:
    """Count and compare a file, JSON by its values."""
    texts = compare_text(stored, recomputed)
    if stored.suffix == ".json":
        old, new = (schema.read_json(path, Any) for path in (stored, recomputed))
        unequal = [difference.describe("stored", "recomputed") for difference in differences(old, new)]
        texts = unequal or (["the same content written otherwise"] if texts else [])
        result.numbers += numbers(new)
    elif stored.suffix == ".txt":
        result.numbers += len(recomputed.read_text(encoding="utf-8").splitlines())  # a number a line
    elif stored.suffix == ".jsonl":
        lines = recomputed.read_bytes().splitlines()
        result.numbers += sum(numbers(schema.decode(line, Any)) for line in lines)
    result.add(stored, texts)
    result.files += 1


@dataclass(frozen=True)
class Recomputation:
    """A stage's main, run again: each file that it writes is compared with the stored one. `where`: the first."""

    stage: Stage
    arguments: Sequence[object]
    pairs: Sequence[tuple[Path, Path]]  # stored, recomputed

    def run(self, result: Result) -> None:
        """The comparison does not take place if what the stage reads is damaged: that is a finding too."""
        reason = ""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.stage([str(argument) for argument in self.arguments])
            for stored, recomputed in self.pairs:
                compare(result, stored, recomputed)
        except DebertaError as error:
            reason = one_line(str(error))
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # JSON of another shape
            reason = f"{type(error).__name__}: {one_line(str(error))}"
        if reason:
            result.add(self.pairs[0][0], [f"cannot be made again: {reason}"])


def recompute(options: Namespace) -> Result:
    """Make everything again and compare. Without a tokenizer and a config, the data are not looked at again.

    A job that cannot be read is a finding too. The report must be there.
    """
    result, scratch, report = Result(), options.scratch, options.report
    try:
        job = assess.read_job(options.job)
    except DebertaError as error:
        result.add(options.job, [f"cannot be read: {one_line(str(error))}"])
        return result
    again, pages = scratch / "again.json", scratch / "pages"
    pages.mkdir()
    # Of the stored report, so that each file is judged for itself; a page names the report.json that lies beside it.
    beside = Path(shutil.copyfile(report, pages / report.name))
    page_pairs = [(path, pages / path.name) for path in (options.markdown, options.html)]
    rendering = ["--report", beside, "--markdown", page_pairs[0][1], "--html", page_pairs[1][1]]
    rendering += ["--language", job.language]
    recomputations = [
        *_stages(job, options),
        Recomputation(assess.main, ["--job", options.job, "--output", again], [(report, again)]),
        Recomputation(render.main, rendering, page_pairs),
    ]
    for recomputation in track(recomputations, "recomputing", "files"):
        recomputation.run(result)
    check_body(result, report)
    if options.stored_bom and options.recomputed_bom:
        pair = (options.stored_bom, options.recomputed_bom)  # the host made it again
        Recomputation(lambda argv: None, [], [pair]).run(result)
    return result


def _stages(job: Job, options: Namespace) -> Iterator[Recomputation]:
    """All that stages counted for the job: data, evaluations, throughputs, label changes of lower precisions."""
    if options.tokenizer and options.config:
        for version, stored in job.sentinels.items():
            command = ["--data", job.data[version], "--tokenizer", options.tokenizer, "--config", options.config]
            yield _again(check_data.main, options.scratch, stored, [*command, *_row_options(job, version)])
    for cell in job.cells:
        if cell.origin != UNRECORDED:
            command = [*_run_options(job, cell, cell.outputs), "--outputs", _joined(cell.outputs)]
            again = _again(postprocess.main, options.scratch, cell.evaluation, command)
            if cell.predictions:
                made = options.scratch / Path(cell.predictions).name
                pairs = [*again.pairs, (Path(cell.predictions), made)]
                again = replace(again, arguments=[*again.arguments, "--predictions", made], pairs=pairs)
            yield again
    for version, tokens in {result.version: result.tokens for result in job.throughputs}.items():
        if options.tokenizer:
            rows = [f"--rows={count}"] if (count := job.profile.rows.get(version)) else []
            command = ["--data", job.data[version], "--tokenizer", options.tokenizer, *rows]
            yield _again(token_counts.main, options.scratch, tokens, command)
    for result in job.throughputs:
        command = ["--lengths", ",".join(result.logs), "--logs", _joined(result.logs)]
        command += ["--tokens", result.tokens, "--bs", result.batch_size]
        yield _again(throughput.main, options.scratch, result.throughput, command)
    for changes in job.label_changes:
        outputs = ["--fp32", _joined(changes.fp32), "--lower", _joined(changes.lower)]
        command = [*_run_options(job, changes, changes.fp32), "--precision", changes.precision, *outputs]
        yield _again(label_changes.main, options.scratch, changes.label_changes, command)


def _again(stage: Stage, scratch: Path, kept: str, command: Sequence[object]) -> Recomputation:
    """The stage that made a kept file; the counts of an accuracy text are in the .json of the same name."""
    stored, output = Path(kept), scratch / Path(kept).name
    suffixes = dict.fromkeys((stored.suffix, ".json"))
    pairs = [(stored.with_suffix(suffix), output.with_suffix(suffix)) for suffix in suffixes]
    return Recomputation(stage, [*command, "--output", output], pairs)


def _run_options(job: Job, figure: EvaluationFiles | LabelChangeFiles, outputs: Mapping[str, str]) -> list[object]:
    bins = ["--bins", _joined(figure.bins)] if figure.bins else []
    paths = ["--data", job.data[figure.version], *bins]
    return ["--lengths", ",".join(outputs), *paths, "--bs", figure.batch_size, *_row_options(job, figure.version)]


def _row_options(job: Job, version: str) -> list[object]:
    options = {"--version": version, "--limit": job.limit or None, "--rows": job.profile.rows.get(version)}
    return [f"{name}={value}" for name, value in options.items() if value is not None]


def _joined(paths: Mapping[str, str]) -> str:
    return ",".join(paths.values())


def check_body(result: Result, report: Path) -> None:
    """`body_sha256` must be that of the body in RFC 8785's canonical form."""
    try:
        content = schema.read_json(report, dict[str, Any])
        digest = canonical.digest(content["body"])
        if content["body_sha256"] != digest:
            result.add(report, [f"body_sha256: stored {shown(content['body_sha256'])}, of the stored body {digest}"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        result.add(report, [f"body_sha256 cannot be checked: {type(error).__name__}: {one_line(str(error))}"])


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "output",
        optional=("tokenizer", "config"),
        job=arguments.file("report_job.json"),
        report=arguments.file("the report.json that is kept"),
        markdown=arguments.file("its report.md"),
        html=arguments.file("its report.html"),
        stored_bom=arguments.file("a bill of materials", required=False),
        recomputed_bom=arguments.file("the same, made again", required=False),
        scratch=arguments.file("an empty folder"),
    )
    files.write_text(options.output, json.dumps(asdict(recompute(options)), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
