"""What several tests of the MNLI stages need: a tsv, the committed tokenizer, a stage as a process, a small disk."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Sequence

import pytest

from deberta.core.contract import LABELS
from deberta.host.plan.plan import STAGES
from tests import in_process

REPOSITORY = Path(__file__).parent.parent
SPM_MODEL = REPOSITORY / "tests" / "data" / "tokenizer" / "spm.model"
GOLDEN = REPOSITORY / "tests" / "data" / "tokenizer" / "golden.json"

DEV_HEADER = [
    "index",
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
    "label1",
    "label2",
    "label3",
    "label4",
    "label5",
    "gold_label",
]


def dev_line(
    premise: str = "A boat.",
    hypothesis: str = "A ship.",
    genre: str = "travel",
    label: str = "neutral",
    pair_id: str = "0n",
) -> str:
    return "\t".join(["0", "0", pair_id, genre, "", "", "", "", premise, hypothesis, label, "", "", "", "", label])


def write_dev(path: Path, lines: Sequence[str]) -> Path:
    path.write_bytes("".join(line + "\n" for line in ["\t".join(DEV_HEADER), *lines]).encode())
    return path


def bucketed_data(path: Path, rows: int) -> Path:
    """Rows of very different lengths in no order, the sixth beyond 256 tokens."""
    lines = [
        dev_line("A boat." * (1 + (row * 7) % 11), "A ship." * (60 if row == 5 else 1), label=LABELS[row % 3])
        for row in range(rows)
    ]
    return write_dev(path, lines)


def bucket_folders(root: Path, lengths: str) -> str:
    """A folder for each length, as a stage takes them: `ROOT/s32/match,ROOT/s64/match`."""
    return ",".join(str(root / f"s{length}" / "match") for length in lengths.split(","))


def golden() -> list[tuple[str, str, list[int]]]:
    """Pairs and the ids that the guide's tokenizer gave for them."""
    rows = json.loads(GOLDEN.read_bytes())["rows"]
    return [(row["premise"], row["hypothesis"], row["ids"]) for row in rows]


def stage_command(stage: str, *arguments: object) -> list[str]:
    """The command line of a stage, by the id that records have for it."""
    return [sys.executable, "-m", STAGES[stage], *map(str, arguments)]


def stage_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def run_stage(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a stage as the host does, in this process."""
    return in_process.run_stage(STAGES[name], list(map(str, arguments)), Path.cwd(), os.environ)


@contextlib.contextmanager
def small_disk(folder: Path, kibibytes: int = 64) -> Iterator[Path]:
    """A file system of that size at `folder`; the test is skipped where mounting is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
