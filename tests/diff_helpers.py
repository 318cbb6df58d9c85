"""Trees with a report whose difference is known: made of `report_helpers`' workspace, with some labels changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from deberta.core import files, schema
from deberta.core.contract import DEV_FILES
from deberta.core.differences import UNVERIFIED, DiffJob, DiffSource, ReportDifference
from deberta.core.paths import Artifacts
from deberta.stages.diff import diff
from deberta.stages.report import assess
from tests import report_helpers
from tests.report_helpers import FOLDER, Logits

ARTIFACTS = Artifacts("demo", "cpu")
ROWS = {"match": 120, "mismatch": 36}


def make_tree(
    folder: Path,
    changed: Sequence[int] = (),
    *,
    rows: Mapping[str, int] = ROWS,
    limit: int = 0,
    batch_sizes: Sequence[int] = (1, 8),
    milliseconds: float = 0.0,
    loops: int = 100,
    edit: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """The tree. `changed`: rows of match whose label is the next one. `milliseconds` more for each batch.
    `edit`: what happens before the report is made.
    """
    job_path = report_helpers.example_job(folder, rows=rows, batch_sizes=batch_sizes, limit=limit)
    artifacts = Artifacts("demo", "cpu", limit)
    for version, count in rows.items():
        gold = [row % 3 for row in range(count)]
        for size in batch_sizes:
            logits = report_helpers.compiled(report_helpers.pytorch(gold, version)[: limit or None], version, 1)
            logits = roll(logits, changed if version == "match" else ())
            outputs, text = artifacts.outputs(size, version) / FOLDER, artifacts.evaluation(size, version)
            report_helpers.write_outputs(folder / outputs, logits, size)
            data = str(artifacts.data / "MNLI" / DEV_FILES[version])
            report_helpers.evaluate(folder, str(outputs), data, str(text), size, version, limit)
            log = folder / artifacts.timing_log(size, version)
            report_helpers.write_timing_log(log, 2.0 + 1.9 * size + milliseconds, loops=loops)
    edit(folder)
    report = assess.assess(assess.read_job(job_path), folder)
    files.write_text(folder / artifacts.report("json"), schema.text(report))
    return folder


def roll(logits: Logits, rows: Sequence[int]) -> Logits:
    """The same with the label after its own in these rows."""
    rolled = logits.copy()
    for row in rows:
        rolled[row] = np.roll(logits[row], 1)
    return rolled


def source(tree: Path, name: str, limit: int = 0) -> DiffSource:
    artifacts = Artifacts("demo", "cpu", limit)
    return DiffSource(
        name=name,
        report=str(tree / artifacts.report("json")),
        root=str(tree),
        job=str(artifacts.job()),
        own=False,
        verification=UNVERIFIED,
        facts={},
    )


def compare(a: DiffSource | Path, b: DiffSource | Path) -> ReportDifference:
    sources = [side if isinstance(side, DiffSource) else source(side, name) for side, name in ((a, "A"), (b, "B"))]
    return diff.difference(DiffJob(a=sources[0], b=sources[1], replaces_published=False))
