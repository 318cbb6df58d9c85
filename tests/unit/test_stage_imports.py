"""What a stage loads before it has read its options: by name, since a second of every step's time hangs on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deberta.host.plan.plan import STAGES, TORCH
from tests.mnli_helpers import REPOSITORY, stage_environment

SLOW = {"torch", "transformers", "onnx", "onnxruntime", "openvino", "scipy", "sympy", "jsonschema", "cryptography"}
SHOW = "import sys, importlib; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
OF_ONNX = {"lint-onnx"}
ONNX_TOO = {"check-fp16", "compare", "export-onnx"}  # and PyTorch


@pytest.mark.parametrize(
    ("stages", "allowed"),
    [
        (STAGES.keys() - TORCH - OF_ONNX, set()),
        (OF_ONNX, {"onnx"}),
        (TORCH - ONNX_TOO, {"torch", "sympy"}),
        (ONNX_TOO, {"torch", "sympy", "onnx"}),
    ],
    ids=["most", "onnx", "torch", "both"],
)
def test_stages_start_without_what_they_may_never_use(stages: set[str], allowed: set[str]) -> None:
    command = [sys.executable, "-c", SHOW, *(STAGES[stage] for stage in sorted(stages))]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=stage_environment(), capture_output=True, text=True, timeout=120, check=True
    )
    assert SLOW & set(done.stdout.split()) <= allowed
