"""The page docs/tour.md: `.venv-stages/bin/python -m tests.tour > docs/tour.md` in the project's folder.

It runs the commands in a fresh clone, with this folder's environments, and shows what a terminal shows. A test runs
them again and compares what is left when all that varies has the same form.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.mnli_helpers import REPOSITORY

PAGE = REPOSITORY / "docs" / "tour.md"
ENVIRONMENTS = (".venv", ".venv-stages")
LEFT_OUT = "[...]"
LONGEST = 200  # characters of a line
HEAD = """\
# A tour of the commands

What each command prints, run one after the other in a fresh clone whose environments (`.venv`, `.venv-stages`) are made
already. Made by `.venv-stages/bin/python -m tests.tour > docs/tour.md`; tests/pipeline/test_tour.py runs them again.
Times, rates, dates and digests are those of the machine that made the page. `[...]` stands for
lines, or the rest of one, that are left out.
"""
CHANGE = """\
.venv-stages/bin/python - <<'END'
import torch
path = "models/demo/pytorch.model-demo.bin"
weights = torch.load(path, weights_only=True)
weights["classifier.bias"][1] += 2.5
torch.save(weights, path)
END"""


class Stop(NamedTuple):
    """A command, what the page says before it, and which lines it shows: those that match `keep`, or all."""

    line: str
    heading: str
    text: str
    keep: str = ""


ACCEPTANCE = "./inv acceptance --profile demo --bs 8 --version match --loops 20"
PREMISE, HYPOTHESIS = "Karin lives in Kyoto.", "Kyoto is where Karin lives."
OF_DEMO = (
    r"executor|\[(token-counts match|export-onnx any length)\]|buckets|accuracy |perf |# De|- "
    r"|results/.*\.(json|md|html)$"
)
OF_RUN = (
    r"\[acceptance\]|accuracy |perf |[0-9]+ steps? up|bs [0-9]|gates:|  (failed|not judged)|verdict:|\S+ \(cpu|error:"
)
TOUR = (
    Stop("./inv", "What there is", "The tasks in groups, and first of all what can run on this machine."),
    Stop(
        "./inv demo",
        "The whole chain",
        "A tiny model on synthetic data, from the checkpoint to a report. Most of what is on standard error, how it "
        "goes, and the report's tables are left out here.",
        OF_DEMO,
    ),
    Stop("./inv status", "What is there now", "Nothing is changed by looking, and a run may be going on meanwhile."),
    Stop(
        f'./inv predict --profile demo --bs 8 --premise "{PREMISE}" --hypothesis "{HYPOTHESIS}"',
        "A pair of texts",
        "Through the model that the demo has compiled. A file of pairs is labelled in the same way.",
        r"backend|executor|row |[0-9]+ ",
    ),
    Stop(
        ACCEPTANCE,
        "An acceptance",
        "Batch size 8, one version and 20 loops: no more than `checked` can come of it. The last line is its summary.",
        OF_RUN,
    ),
    Stop(CHANGE, "One weight changed", "One number of the checkpoint, as a mistake on the way would leave it."),
    Stop(
        ACCEPTANCE, "The same acceptance again", "What depends on the checkpoint is made again, and gates fail.", OF_RUN
    ),
    Stop(
        "./inv diff latest~1 latest --profile demo",
        "What is different",
        "Row by row: which labels changed, whether accuracy and throughput differ by more than chance, and what else "
        "is not the same.",
    ),
    Stop(
        "./inv verify --profile demo",
        "Verify",
        "Every number of the report is made again from its evidence: that it failed is true.",
    ),
    Stop(
        "./inv clean --profile demo",
        "Clean",
        "What the commands made goes; inputs and kept acceptances stay.",
        r"removing (models/demo/dynamic|results/demo/cpu/report)",
    ),
    Stop("./inv status --profile demo", "What is left", ""),
)

# What varies from run to run or machine to machine -> how it is compared.
_SAME_FORM = (
    (r"\b\d{4}-\d\d-\d\dT[\d:+.]+", "TIME"),
    (r"\b\d{8}T\d{6}Z_[0-9a-f]{8}", "ACCEPTANCE"),
    (r"\b[0-9a-f]{12,64}\b", "DIGEST"),
    (r".*(fps of match| {2}8 +match +[\d.]+ +[\d.]+ to ).*\n", ""),  # which of two runs of one machine is faster
    (r"; fps 1 (?:no difference|not compared|\w+)|\(bs \d+, match\)$|; about .* left$", ""),
    (r"\d[\d,.]*(?= ?(s|ms|fps|rows per s|GB|MB|kB|bytes|min|h)\b)", "N"),
    (r"\b\d+\.\d{3,}\b", "N"),  # margins and times, whose last digits are a machine's
    (r"(?<=fps \()\d+ loops[^)]*", "LOOPS"),
    (r" +", " "),  # columns are as wide as what is in them
)


def play(clone: Path) -> Iterator[tuple[Stop, str]]:
    """Run the tour in a new clone; each stop with what it printed, and its exit code if that is not 0."""
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
    for name in ENVIRONMENTS:
        (clone / name).symlink_to((REPOSITORY / name).resolve())
    hidden = ("INVOKE_", "DEBERTA_", "GITHUB_", "GITLAB_", "CI", "PYTHON", "VIRTUAL_ENV", "DOCKER_")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    variables["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    for stop in TOUR:
        done = subprocess.run(
            ["bash", "-c", stop.line],
            cwd=clone,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        ended = f"(exit code {done.returncode})\n" if done.returncode else ""
        yield stop, f"{done.stdout.replace(str(clone), '~/deberta-ascend')}{ended}"


def shown(stop: Stop, output: str) -> list[str]:
    """The lines of an output that the page has."""
    lines: list[str] = []
    for line in output.rstrip("\n").split("\n") if output.strip() else []:
        if not stop.keep or re.match(rf"{stop.keep}|\(exit code", line):
            lines.append(line.rstrip() if len(line) <= LONGEST else f"{line[:LONGEST]} {LEFT_OUT}")
        elif lines[-1:] != [LEFT_OUT]:
            lines.append(LEFT_OUT)
    return lines


def page(stops: Iterable[tuple[Stop, str]]) -> str:
    """The page, Markdown."""
    parts = [HEAD]
    for stop, output in stops:
        block = "\n".join([f"$ {stop.line}", *shown(stop, output)])
        parts.append(f"## {stop.heading}\n\n{stop.text}\n\n```console\n{block}\n```\n".replace("\n\n\n\n", "\n\n"))
    return "\n".join(parts)


def same_form(text: str) -> list[str]:
    """The page's lines, with all that varies in the same form."""
    for pattern, form in _SAME_FORM:
        text = re.sub(pattern, form, text, flags=re.MULTILINE)
    return text.splitlines()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(page(play(Path(folder, "deberta-ascend"))))
