"""What comes from outside reaches terminals, logs and pages without its control characters."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import onnx.parser
import pytest
from invoke.exceptions import Exit

from deberta.core import schema
from deberta.core.errors import DataError, run_stage, visible, visible_output
from deberta.core.progress import Progress
from deberta.host.cli.command import exit_codes
from deberta.host.engine.transcript import transcript
from deberta.host.fetch import archives
from deberta.host.report import verification
from deberta.host.run.console import Console
from deberta.stages.lint import lint_onnx
from deberta.stages.model import config
from deberta.stages.report import render
from tests import report_samples, verify_helpers
from tests.fetch_helpers import Run, checkpoint, zipped
from tests.raw_server import answering
from tests.report_samples import changed

HOSTILE = "a\x1b[2J\x07b\r\x9b31m\u202ec\u2066\x7f\x00"
ALLOWED = "\n\t"


def hidden(text: str) -> list[str]:
    """The characters that a terminal or a page would obey."""
    return [char for char in text if char not in ALLOWED and visible(char) != char]


def told(call: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> str:
    """All that a command prints that does this, its error message included."""
    with contextlib.suppress(Exit), exit_codes():
        call()
    streams = capfd.readouterr()
    return streams.out + streams.err


def test_each_kind_is_shown_by_its_number() -> None:
    assert visible("a\x1bb\x7f\x9b\u202e\u2069\ud800\r") == "a\\u001bb\\u007f\\u009b\\u202e\\u2069\\ud800\\u000d"
    kept = "one\n\ttwo, \u4e2d\u6587, \u00e9, \U0001f600, e\u0301"
    assert visible(kept) == kept


def test_json_keeps_its_content() -> None:
    text = schema.text({HOSTILE: [HOSTILE]})
    assert not hidden(text) and json.loads(text) == {HOSTILE: [HOSTILE]}


def test_a_stage_and_a_command_print_nothing_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> None:
        print(HOSTILE)
        raise DataError(HOSTILE)

    assert run_stage(main, []) == 5
    streams = capfd.readouterr()
    assert not hidden(streams.out + streams.err) and "a\\u001b[2J" in streams.out and "a\\u001b[2J" in streams.err
    text = told(lambda: main(()), capfd)
    assert not hidden(text) and text.count("a\\u001b[2J") == 2


def test_progress_rewrites_its_line_on_a_terminal_and_its_text_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with visible_output():
        console = Console("title")
        console.line(f"[progress] {visible(HOSTILE)}\x1b: 1/2 rows")
        console.line(HOSTILE)
        progress = Progress(HOSTILE, 1)
        progress._printed -= 1
        progress.update(1)
    text = terminal.getvalue()
    assert text.count("\r\x1b[K") == 3 and not hidden(text.replace("\r\x1b[K", ""))


def test_a_log_has_no_hidden_characters_and_its_reader_gets_the_line(tmp_path: Path) -> None:
    with transcript(tmp_path / "log.txt", ["tool"], lambda line: None) as record:
        assert record([f"{HOSTILE}\n"]) == [f"{HOSTILE}\n"]
    assert not hidden((tmp_path / "log.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", ["text", "json", "sarif"])
def test_node_and_tensor_names(form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = '<ir_version: 7, opset_import: ["": 12]> g (float[batch, 4] x) => (float[batch, 4] y) { y = Erfff(x) }'
    model = onnx.parser.parse_model(text)
    model.graph.node[0].name = model.graph.node[0].output[0] = model.graph.output[0].name = HOSTILE
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert run_stage(lint_onnx.main, ["--model", str(path), "--format", form]) == 0
    streams = capfd.readouterr()
    assert not hidden(streams.out + streams.err) and "a\\u001b[2J" in streams.out
    if form != "text":
        json.loads(streams.out)


def test_a_config(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": HOSTILE.replace("\0", ""), "hidden_act": "\x1b[2J"}), encoding="utf-8")
    text = told(lambda: config.read(path), capfd)
    assert "model_type is" in text and not hidden(text)


def test_a_report_and_its_pages(tmp_path: Path) -> None:
    def plant(report: dict[str, object]) -> None:
        report["body"]["profile"] = HOSTILE.replace("\0", "")  # type: ignore[index]

    path = report_samples.write(tmp_path / "report.json", changed(report_samples.demo(), plant))
    pages = [tmp_path / "report.md", tmp_path / "report.html"]
    assert run_stage(render.main, ["--report", str(path), "--markdown", str(pages[0]), "--html", str(pages[1])]) == 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not hidden(text) and "a\\u001b[2J" in text


def test_a_tree_with_a_hostile_report_and_record(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / verify_helpers.REPORT
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({HOSTILE.replace("\0", ""): 1}), encoding="utf-8")
    record = tmp_path / "models/small/x\x1b[2J.record.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"_type": HOSTILE.replace("\0", "")}), encoding="utf-8")
    text = told(lambda: verification.verify(verify_helpers.request(tmp_path)), capfd)
    assert "does not verify" in text and "x\\u001b[2J.record.json" in text and not hidden(text)


def test_the_reason_of_an_http_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with answering(b"HTTP/1.1 404 a\x1b[2J\x9b31m\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as url:
        run = Run(tmp_path)
        text = told(lambda: run(checkpoint(url)), capfd)
    assert "HTTP 404 a\\u001b[2J" in text and not hidden(text)


def test_a_member_of_a_zip(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"a\x1b[2J\x9b31m": b"x"}))
    text = told(lambda: archives.extract(tmp_path / "a.zip", {"b": tmp_path / "b"}), capfd)
    assert "a\\u001b[2J" in text and not hidden(text)
