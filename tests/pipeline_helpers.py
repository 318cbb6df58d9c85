"""A workspace with a tiny profile of its own, and our commands run in it as a user runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deberta.core import files
from deberta.core.contract import DEV_FILES, LABELS
from deberta.host.report.gates import OURS
from tests import in_process
from tests.mnli_helpers import REPOSITORY, SPM_MODEL, dev_line, write_dev

ROWS = {"match": 10, "mismatch": 7}
GENRES = {"match": ("fiction", "travel"), "mismatch": ("oup", "letters")}
DEMO = (  # what is committed of the demo profile
    "models/demo/pytorch.model-demo.bin",
    "models/demo/model_config.json",
    "models/demo/spm.model",
    "data/demo/MNLI/dev_matched.tsv",
    "data/demo/MNLI/dev_mismatched.tsv",
)
# Long enough to be seen running, short enough not to be waited for.
TIMEOUT = 180


@dataclass(frozen=True)
class Workspace:
    """A folder with models/, data/ and results/ of a profile called tiny."""

    root: Path

    @property
    def checkpoint(self) -> Path:
        return self.root / "models/tiny/pytorch.model-tiny.bin"

    def data(self, version: str) -> Path:
        return self.root / "data/tiny/MNLI" / DEV_FILES[version]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "invoke", *self.arguments(*arguments)]

    def arguments(self, *arguments: str) -> list[str]:
        return ["-f", str(self.root / "settings.yaml"), *arguments]

    def copy(self, root: Path) -> Workspace:
        """A copy in a new folder, modification times included, so that what is up to date stays so."""
        shutil.copytree(self.root, root)
        workspace = Workspace(root)
        workspace.configure(workspace=str(root))
        return workspace

    def configure(self, **settings: object) -> None:
        """Change settings; one with None is removed."""
        path = self.root / "settings.yaml"
        changed = {**json.loads(path.read_text(encoding="utf-8")), **settings}
        path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this process; see `in_process`."""
        return in_process.run_invoke(self.arguments(*arguments), REPOSITORY, environment())

    def run_process(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def succeed(self, *arguments: str) -> str:
        """Run a command that must succeed; returns how it went, and then its result."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr + done.stdout

    def fail(self, code: int, *arguments: str) -> str:
        """Run a command that must fail with this exit code, an error as its last line and no traceback; returns it."""
        done = self.run(*arguments)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return error_line(done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # A run that is itself in a shell's background ignores SIGINT and passes that on: undone for the child.
        return subprocess.Popen(
            self.command(*arguments),
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def files(self) -> set[str]:
        """Every file below models/, data/ and results/."""
        kinds = ("models", "data", "results")
        found = [path for kind in kinds for path in (self.root / kind).rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix() for path in found}


def error_line(stderr: str) -> str:
    """The last line of a command that failed: its one error."""
    lines = stderr.splitlines(keepends=True)
    assert lines[-1].startswith("error: ") and sum(line.startswith("error: ") for line in lines) == 1, stderr
    return lines[-1]


def environment() -> dict[str, str]:
    # An engine may answer here: where a test means the docker executor, it says so.
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "INVOKE_EXECUTOR": "local"}


def copy_demo(workspace: Path) -> None:
    """Copy what is committed of the demo profile."""
    for name in DEMO:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, workspace / name)


def make_small_demo(root: Path, rows: int, gates: Mapping[str, tuple[int, int]]) -> Workspace:
    """The demo with the first rows alone of some versions; `gates`: the rows expected right and those allowed less."""
    copy_demo(root)
    text = (REPOSITORY / OURS).read_text(encoding="utf-8")
    for version, (expected, allowed) in gates.items():
        data = root / "data/demo/MNLI" / DEV_FILES[version]
        known = files.sha256_of(data)
        data.write_bytes(b"".join(data.read_bytes().splitlines(keepends=True)[: rows + 1]))
        gate = f"correct_rows.{version}]\nexpected = {expected}\nallowed = {allowed}\nof = {rows}"
        text = re.sub(rf"(?<=profile.demo.)correct_rows\.{version}\](\n\w+ = \d+){{3}}", gate, text)
        text = text.replace(known, files.sha256_of(data))
    (root / "gates.toml").write_text(text, encoding="utf-8")
    settings = {
        "workspace": str(root),
        "stages_python": sys.executable,
        "executor": "local",
        "profile": "demo",
        "profiles": {"demo": {"rows": dict.fromkeys(gates, rows)}},
        "gates": str(root / "gates.toml"),
    }
    (root / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return Workspace(root)


def invoke(workspace: Path, *arguments: str) -> str:
    """Run a command with the project's own settings in a workspace; returns how it went, and then its result."""
    variables = {**environment(), "INVOKE_WORKSPACE": str(workspace), "INVOKE_STAGES_PYTHON": sys.executable}
    done = in_process.run_invoke(arguments, REPOSITORY, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr + done.stdout


def steps_that_ran(output: str) -> list[str]:
    """Titles of the steps that a command ran, in order."""
    return [line[1 : line.index("]")] for line in output.splitlines() if "] running: " in line]


def make(root: Path) -> Workspace:
    """A new workspace: two layers, 400 pieces, ten and seven rows."""
    # Heavy, and only needed here: importing it lazily keeps the other tests of this folder quick to collect.
    import torch

    from deberta.stages.model import checkpoint, config, deberta

    workspace = Workspace(root)
    values = {
        **{"model_type": "deberta-v2", "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512},
        **{"relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 256, "share_att_key": True},
        **{"norm_rel_ebd": "layer_norm", "position_biased_input": False, "pooling": {"dropout": 0}},
    }
    torch.manual_seed(0)
    made = deberta.Deberta(config.from_dict(values))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    checkpoint.save(workspace.checkpoint, made)
    models = workspace.checkpoint.parent
    (models / "model_config.json").write_text(json.dumps(values), encoding="utf-8")
    (models / "spm.model").write_bytes(SPM_MODEL.read_bytes())
    workspace.data("match").parent.mkdir(parents=True)
    for version, rows in ROWS.items():
        lines = [
            dev_line(f'A "boat {i} of the sea.', "A ship." * (i + 1), GENRES[version][i % 2], LABELS[i % 3], f"{i}n")
            for i in range(rows)
        ]
        write_dev(workspace.data(version), lines)
    settings = {
        "workspace": str(root),
        "stages_python": sys.executable,
        "executor": "local",
        "buckets": "256",  # what a test is about, unless it says so, is the padded run
        "profile": "tiny",
        "profiles": {
            "tiny": {
                **{"checkpoint": workspace.checkpoint.name, "config": "model_config.json", "tokenizer": "spm.model"},
                **{"dataset": "MNLI", "labels": list(LABELS), "rows": ROWS},
            }
        },
    }
    (root / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return workspace
