"""The rooms of the house: what each package is for and which others it may import.

`python -m tests.architecture` writes docs/architecture.md from this table and the code; tests/unit/test_layering.py
holds both to it.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"


class Room(NamedTuple):
    """A package: one sentence on what is in it, and the packages that it may import."""

    sentence: str
    imports: tuple[str, ...]


ROOMS = {
    "core": Room("The vocabulary that host and stages share: errors, contract, paths, records, files, schemas.", ()),
    "ascend": Room("CANN's tools, read and judged: atc, msame, ais_bench, npu-smi.", ("core",)),
    "host.fetch": Room("Downloads, resumed and checked by SHA-256.", ("core",)),
    "host.environments": Room("The pip environments of the host and of the stages.", ("core",)),
    "host.plan": Room("What would run, as pure data: profiles, plans, cases, steps.", ("core", "ascend")),
    "host.engine": Room("One Docker engine: client, containers, devices, clean-up.", ("core", "ascend", "host.plan")),
    "host.images": Room(
        "Stage images and the CI image: pins, definitions, builds.", ("core", "host.environments", "host.engine")
    ),
    "host.run": Room(
        "Planned steps executed: freshness, executors, judgement of what they leave.",
        ("core", "ascend", "host.environments", "host.plan", "host.engine", "host.images"),
    ),
    "host.shards": Room(
        "One accuracy run cut into shards: devices, placing, retries, the merged outputs.",
        ("core", "ascend", "host.plan", "host.engine", "host.run"),
    ),
    "host.cluster": Room(
        "Many hosts as one: devices behind a scheduler, what is shipped to them, and how long an acceptance takes.",
        ("core", "ascend", "host.plan", "host.run", "host.shards"),
    ),
    "host.report": Room(
        "What is measured, claimed and verified.",
        ("core", "ascend", "host.environments", "host.plan", "host.images", "host.run", "host.shards"),
    ),
    "host.user_files": Room(
        "What users bring, looked at and put in place.",
        ("core", "ascend", "host.plan", "host.run"),
    ),
    "host.workflows": Room(
        "What each family of tasks does, a file per family.",
        (
            *("core", "ascend", "host.environments", "host.plan", "host.engine", "host.images", "host.run"),
            *("host.report", "host.user_files"),
        ),
    ),
    "host.prediction": Room(
        "Texts of the user's, labelled by the compiled model.",
        ("core", "ascend", "host.plan", "host.run", "host.workflows"),
    ),
    "host.cli": Room(
        "The tasks' options, as data, and their bodies.",
        (
            *("core", "ascend", "host.fetch", "host.environments", "host.plan", "host.engine", "host.images"),
            *("host.run", "host.shards", "host.cluster", "host.report", "host.user_files", "host.workflows"),
            "host.prediction",
        ),
    ),
    "host.program": Room(
        "The program around the tasks: its name, list, help, suggestions and completion.",
        ("core", "host.run", "host.cli"),
    ),
    "tasks": Room("The collection of tasks that invoke reads.", ("host.cli", "host.program")),
    "stages": Room("What all stages share: their command lines and ONNX Runtime sessions.", ("core",)),
    "stages.model": Room("DeBERTa, its configuration, checkpoint and tokenizer.", ("core",)),
    "stages.data": Room("Data sets: their check, token counts, bins.", ("core", "stages", "stages.model")),
    "stages.inference": Room(
        "A compiled model run on the CPU, and its outputs counted.",
        ("core", "ascend", "stages", "stages.model", "stages.data"),
    ),
    "stages.compile": Room(
        "PyTorch to ONNX, and ONNX to the cpu backend's model.", ("core", "stages", "stages.model", "stages.inference")
    ),
    "stages.fp16": Room(
        "The graph with float16 storage on the CPU.", ("core", "stages", "stages.data", "stages.inference")
    ),
    "stages.compare": Room(
        "Two ways of running the model, down to the first layer where they part.",
        ("core", "stages", "stages.model", "stages.data", "stages.inference", "stages.fp16"),
    ),
    "stages.lint": Room("An offline check of ONNX files against what ATC takes.", ("core", "stages")),
    "stages.report": Room(
        "The report: statistics, gates, Markdown and HTML.", ("core", "ascend", "stages", "stages.inference")
    ),
    "stages.diff": Room(
        "Two reports side by side.",
        ("core", "stages", "stages.data", "stages.inference", "stages.report"),
    ),
    "stages.train": Room("Fine-tuning.", ("core", "stages", "stages.model", "stages.data")),
    "stages.demo": Room("The demo's data, tokenizer and configuration.", ("core", "stages")),
    "stages.verify": Room(
        "A report counted again, replayed and signed.",
        ("core", "stages", "stages.model", "stages.data", "stages.inference", "stages.report"),
    ),
    "benchmarks": Room(
        "The cpu backend beside what else one would run the model with; in no image.",
        ("core", "stages", "stages.model", "stages.inference", "stages.compile", "stages.lint"),
    ),
}
WAY = (
    ("tasks.py", "the task `evaluate`, one of a collection"),
    ("deberta/host/cli/evaluation.py", "its options, read from the table, become a case and a session"),
    ("deberta/host/workflows/evaluation.py", "the steps that the case needs, in order"),
    ("deberta/host/plan/evaluation.py", "each step as data: what it reads, writes and is told"),
    ("deberta/host/run/runner.py", "runs the step unless its record says that it is up to date"),
    ("deberta/host/run/local.py", "the stage as a process (or `docker_executor.py`: in a container)"),
    ("deberta/stages/inference/run_cpu.py", "one stage: bins in, logits out"),
    ("deberta/core/records.py", "the record of what was made out of what"),
)


def modules() -> dict[str, Path]:
    """Full name of each of our modules -> its file."""
    files = [*ROOT.joinpath("deberta").rglob("*.py"), *ROOT.joinpath("benchmarks").glob("*.py"), ROOT / "tasks.py"]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def room_of(module: str, path: Path) -> str:
    """The room that a module stands in; empty for deberta's own __init__."""
    package = module if path.name in ("__init__.py", "tasks.py") else module.rpartition(".")[0]
    return package.removeprefix("deberta").lstrip(".")


def imports() -> Iterator[tuple[str, str, str]]:
    """Each import of one of our modules by another: the importing file and line, its room, the imported room."""
    known = modules()
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                target = target if target in known else node.module
                if target in known:
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield where, room_of(module, path), room_of(target, known[target])


def violations() -> list[str]:
    """Imports that the table does not allow, each with its place."""
    return [
        f"{where}: {room} imports {target}"
        for where, room, target in imports()
        if target not in ("", room) and target not in ROOMS[room].imports
    ]


def page() -> str:
    """docs/architecture.md."""
    arrows = sorted({(room, target) for _, room, target in imports() if room != target and target and room})
    drawn = [
        (room, target) for room, target in arrows if target != "core" and not _through_others(room, target, arrows)
    ]
    rows = [
        f"| `{name}` | {room.sentence} | {', '.join(t for r, t in arrows if r == name) or 'nothing of ours'} |"
        for name, room in ROOMS.items()
    ]
    way = [f"{number}. [`{path}`](../{path}): {sentence}" for number, (path, sentence) in enumerate(WAY, 1)]
    return "\n".join(
        [
            "# Architecture",
            "",
            "Made by `python -m tests.architecture` from the code and its table of rooms; tests/unit/test_layering.py",
            "holds the code to the table and this page to both. Names are below `deberta/`, but for `tasks` and",
            "`benchmarks`.",
            "",
            "## The rooms",
            "",
            "| room | what is in it | imports |",
            "|---|---|---|",
            *rows,
            "",
            "## The arrows",
            "",
            "From the importing room down to the imported one; left out are `core`, which all import, and every arrow",
            "that follows from others. There are no circles.",
            "",
            "```mermaid",
            "graph TD",
            *(f"    {room} --> {target}" for room, target in drawn),
            "```",
            "",
            "## The way of one `invoke evaluate`",
            "",
            *way,
            "",
        ]
    )


def _through_others(room: str, target: str, arrows: list[tuple[str, str]]) -> bool:
    """Whether the target can be reached by two arrows or more."""
    waiting = [t for r, t in arrows if r == room and t != target]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [t for r, t in arrows if r == name]
    return target in reached


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
