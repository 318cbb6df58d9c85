"""SHA-256 of what the demo's commands make: the same on every machine, x86_64 and aarch64.

`.venv-stages/bin/python -m tests.demo_digests > tests/data/demo_digests.json` in the project's folder writes the table.
It has for each command what that command adds to what those before it made. A folder, whose name ends with /, has the
`dirHash` of in-toto. Logits, times and what says them (outputs, predictions, reports, records) are a machine's own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from deberta.core import files
from tests import fake_cann
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import copy_demo, invoke

TABLE = REPOSITORY / "tests/data/demo_digests.json"
DEMO = "demo"
LIMITED = "evaluate --profile demo --bs 8 --limit 32"
ASCEND = (  # with the stand-ins of tests/fakes: the .om is theirs, not ATC's
    "build-om --profile demo --bs 8 --backend ascend",
    f"{LIMITED} --backend ascend",
)
MADE = (
    "models/demo/dynamic.onnx",
    "models/demo/cpu/*.onnx",
    "models/demo/cpu/*.xml",
    "models/demo/cpu/*.bin",
    "models/demo/ascend/*.om",
    "data/demo/tokens_*match.json",
    "data/demo/pre_mnli_bs*/*match/",
    "results/demo/*/eval_*.txt",
)


def digests(workspace: Path) -> dict[str, str]:
    """What is in a workspace of MADE: path -> digest, in hex."""
    result = {}
    for pattern in MADE:
        for path in sorted(workspace.glob(pattern)):
            name = path.relative_to(workspace).as_posix()
            if not pattern.endswith("/"):
                result[name] = files.sha256_of(path)
            elif path.is_dir():
                result[f"{name}/"] = files.folder_digest(path)
    return result


def table(*commands: str) -> dict[str, str]:
    """What the committed table says of these commands, or of all: path -> digest."""
    sections = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: digest for command in commands or sections for name, digest in sections[command].items()}


def variables_of(cann: Path) -> dict[str, str]:
    """The environment variables with which commands find the stand-ins."""
    return {
        "INVOKE_CANN": str(cann / "ascend-toolkit"),
        "INVOKE_MSAME": str(cann / fake_cann.MSAME),
        "PATH": f"{(cann / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}",
    }


def main() -> None:
    known: dict[str, str] = {}
    sections = {}
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder, "workspace")
        copy_demo(workspace)
        cann = fake_cann.install(Path(folder, "Ascend"), python=sys.executable)
        for command in (DEMO, LIMITED, *ASCEND):
            if command in ASCEND:
                os.environ.update(variables_of(cann))
            invoke(workspace, *command.split())
            now = digests(workspace)
            if changed := {name for name, digest in known.items() if now.get(name) != digest}:
                sys.exit(f"{command} changed {', '.join(sorted(changed))}")
            sections[command] = {name: digest for name, digest in now.items() if name not in known}
            known = now
    print(json.dumps(sections, indent=1))


if __name__ == "__main__":
    main()
