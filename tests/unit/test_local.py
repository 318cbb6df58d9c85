"""The local executor: how a stage's end becomes ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deberta.core import errors
from deberta.core.errors import DebertaError, StageError
from deberta.host.run import local
from deberta.host.run.executor import check_exit
from tests.mnli_helpers import REPOSITORY


def _run(tmp_path: Path, code: str) -> str:
    shown: list[str] = []
    log = tmp_path / "logs" / "stage.log"
    variables = local.environment(tmp_path)
    try:
        lines, status = local.execute([sys.executable, "-c", code], tmp_path, variables, log, shown.append)
        check_exit("the.stage", lines, status, log)
        return "".join(lines)
    finally:
        assert not [line for line in shown if line.startswith(errors.ERROR_PREFIX)]  # it comes as the error itself


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (77, 4)])
def test_a_stages_error_keeps_its_message_and_exit_code(tmp_path: Path, code: int, expected: int) -> None:
    script = (
        f"import sys; print('working'); print('error: no such thing. Run: that', file=sys.stderr); sys.exit({code})"
    )
    with pytest.raises(DebertaError) as caught:
        _run(tmp_path, script)
    assert (str(caught.value), caught.value.exit_code) == ("no such thing. Run: that", expected)
    log = (tmp_path / "logs" / "stage.log").read_text()
    assert "working" in log and "no such thing" in log and log.startswith("$ ")


def test_a_stage_that_dies_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"exit code 1: ZeroDivisionError: division by zero. Its output is in .*stage\.log"
    ):
        _run(tmp_path, "1 / 0")
    with pytest.raises(StageError, match="was killed, most likely because memory ran out"):
        _run(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, "import sys; sys.exit(130)")


def test_a_stage_gets_our_package_and_no_other_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/cann")
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere/venv")
    out = _run(tmp_path, "import os; print(os.environ['PYTHONPATH'], os.environ.get('VIRTUAL_ENV'))")
    assert out.split() == [str(tmp_path), "None"]


def test_an_interrupt_around_a_fork_is_not_lost() -> None:
    """Python prints and forgets what its hooks around a fork raise."""
    script = (
        "import os, signal, sys\n"
        "from deberta.core import machine\n"
        "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "try:\n"
        "    machine.start([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
