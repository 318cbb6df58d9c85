"""What of a guide's folder fits a profile, and why the rest is left out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deberta.core.contract import DEV_FILES
from deberta.core.paths import Artifacts
from deberta.host.plan.plan import Plan
from deberta.host.plan.profiles import Profile
from deberta.host.user_files.guide_folder import OUTPUTS_NAME, FolderContents, Look
from tests import guide_folder_helpers
from tests.mnli_helpers import REPOSITORY

ROWS = 12
OUTPUTS = f"result/outputs_bs8_om/match/{guide_folder_helpers.RUN}"
LOG, TEXT, BINS = "msame_bs8_match.txt", "result/eval_bs8_match.txt", "pre_mnli_bs8/match"


def _plan(backend: str = "ascend", rows: int | None = ROWS) -> Plan:
    paths = Artifacts("demo")
    names = ("pytorch.model-demo.bin", "model_config.json", "spm.model")
    checkpoint, config, tokenizer = (paths.models / name for name in names)
    dataset = paths.data / "MNLI"
    return Plan(Profile("demo", checkpoint, config, tokenizer, dataset, None, {"match": rows}, False), backend)


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("made")
    lines = (REPOSITORY / "data/demo/MNLI/dev_matched.tsv").read_bytes().splitlines(keepends=True)
    (base / DEV_FILES["match"]).write_bytes(b"".join(lines[: ROWS + 1]))
    return guide_folder_helpers.make(base / "guide", base, versions=["match"])


@pytest.fixture(name="guide")
def _guide(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "guide")


def _look(guide: Path, plan: Plan | None = None, digests: dict[str, str] | None = None) -> FolderContents:
    return Look(plan or _plan(), guide.parent / "workspace", digests or {}).through(guide)


def _reasons(guide: Path, plan: Plan | None = None, digests: dict[str, str] | None = None) -> dict[str, str]:
    left_out = _look(guide, plan, digests).left_out
    return {path.relative_to(guide).as_posix(): reason for path, reason in left_out}


def test_everything_by_the_guides_names(guide: Path) -> None:
    survey = _look(guide)
    assert {entry.source.relative_to(guide).as_posix(): str(entry.target) for entry in survey.supplied} == {
        "pytorch.model-073631.bin": "models/demo/pytorch.model-demo.bin",
        "model_config.json": "models/demo/model_config.json",
        "spm.model": "models/demo/spm.model",
        "dynamic.onnx": "models/demo/dynamic.onnx",
        "deberta_bs8.om": "models/demo/ascend/deberta_bs8.om",
        "MNLI/dev_matched.tsv": "data/demo/MNLI/dev_matched.tsv",
        BINS: "data/demo/pre_mnli_bs8/match",
        "result/outputs_bs8_om/match": "results/demo/ascend/outputs_bs8_om/match",
        LOG: "results/demo/ascend/msame_bs8_match.txt",
    }
    assert survey.texts == {(8, "match"): guide / TEXT}
    assert sorted(_reasons(guide)) == ["DeBERTa", "pth2onnx.py", "result/perf_bs8_om"]


def remove(name: str) -> Callable[[Path], None]:
    return lambda guide: (guide / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(guide: Path) -> None:
        (guide / name).parent.mkdir(parents=True, exist_ok=True)
        (guide / name).write_bytes(content)

    return spoil


def edit(name: str, old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    def spoil(guide: Path) -> None:
        text = (guide / name).read_text()
        assert old in text
        (guide / name).write_text(text.replace(old, new, count))

    return spoil


def copy(source: str, target: str) -> Callable[[Path], None]:
    def spoil(guide: Path) -> None:
        shutil.copytree(guide / source, guide / target)

    return spoil


def pipe(guide: Path) -> None:
    (guide / "deberta_bs8.om").unlink()
    os.mkfifo(guide / "deberta_bs8.om")


def circle(guide: Path) -> None:
    (guide / "deberta_bs8.om").unlink()
    (guide / "deberta_bs8.om").symlink_to("deberta_bs8.om")
    (guide / "MNLI/up").symlink_to(guide)


def zero(guide: Path) -> None:
    (guide / LOG).unlink()
    (guide / LOG).symlink_to("/dev/zero")


SPOILED = {  # what is done to the folder, what is left out by it, and why
    "an output is missing": (remove(f"{OUTPUTS}/input_1_output_0.bin"), OUTPUTS.rpartition("/")[0], "1 outputs of 2"),
    "an output is short": (
        write(f"{OUTPUTS}/input_1_output_0.bin", b"1"),
        OUTPUTS.rpartition("/")[0],
        "(1 bytes, not 96)",
    ),
    "an output is NaN": (
        write(f"{OUTPUTS}/input_0_output_0.bin", b"\0\0\xc0\x7f" * 24),
        OUTPUTS.rpartition("/")[0],
        "input_0_output_0.bin holds NaN",
    ),
    "two runs": (copy(OUTPUTS, f"{OUTPUTS}1"), OUTPUTS.rpartition("/")[0], "it holds 2 runs"),
    "outputs of another batch size": (
        lambda guide: os.rename(guide / "result/outputs_bs8_om", guide / "result/outputs_bs4_om"),
        "result/outputs_bs4_om/match",
        "1 outputs of 3 are missing",
    ),
    "bins of int64": (write(f"{BINS}/input_ids/input_0.bin", bytes(8 * 256 * 8)), BINS, "(16384 bytes, not 8192)"),
    "no mask": (lambda guide: shutil.rmtree(guide / BINS / "input_mask"), BINS, "it has no folder input_mask"),
    "another bin": (write(f"{BINS}/input_ids/input_2.bin", bytes(8192)), BINS, "1 inputs of 2 are not expected"),
    "a file beside the bins": (
        write(f"{BINS}/notes", b"?"),
        BINS,
        "it holds more than input_ids and input_mask: notes",
    ),
    "a log without success": (edit(LOG, "success", "?", -1), LOG, "it has no line that says success"),
    "a log with an error": (edit(LOG, "[INFO] output", "[ERROR] output"), LOG, "the run failed: [ERROR] output"),
    "a log that was changed": (edit(LOG, "without first time: 2", "without first time: 1"), LOG, "it was changed"),
    "a log of nothing": (write(LOG, b"[INFO] Execute sample success\n"), LOG, "no throughput can be computed"),
    "a log of another model": (
        edit(LOG, "[INFO] acl init", "[INFO] load model ./deberta_bs4.om success\n[INFO] acl init"),
        LOG,
        "it is of another run: deberta_bs4.om",
    ),
    "a log of another version": (
        edit(LOG, "a/input_0.bin", "./pre_mnli_bs8/mismatch/input_ids/input_0.bin"),
        LOG,
        "it is of another run: pre_mnli_bs8/mismatch/",
    ),
    "an empty .om": (write("deberta_bs8.om", b""), "deberta_bs8.om", "it is empty"),
    "a pointer": (
        write("dynamic.onnx", b"version https://git-lfs.github.com/spec/v1\n"),
        "dynamic.onnx",
        "Git LFS pointer",
    ),
    "a page for a checkpoint": (
        write("pytorch.model-073631.bin", b"<!DOCTYPE html><html>"),
        "pytorch.model-073631.bin",
        "it is a web page",
    ),
    "any file for a checkpoint": (
        write("pytorch.model-073631.bin", b"something else"),
        "pytorch.model-073631.bin",
        "it is no checkpoint",
    ),
    "another model's config": (
        edit("model_config.json", "deberta-v2", "bert"),
        "model_config.json",
        "its model_type is not deberta-v2",
    ),
    "a config that is none": (write("model_config.json", b"{"), "model_config.json", "is not JSON"),
    "a row less": (
        lambda guide: (
            (guide / "MNLI/dev_matched.tsv").write_bytes(
                b"".join((guide / "MNLI/dev_matched.tsv").read_bytes().splitlines(keepends=True)[:-1])
            )
            and None
        ),
        "MNLI/dev_matched.tsv",
        "it does not fit",
    ),
    "an accuracy of other rows": (edit(TEXT, "eval_samples = 12", "eval_samples = 13"), TEXT, "it is of 13 rows"),
    "an accuracy without one": (write(TEXT, b"nothing\n"), TEXT, "it has no lines accuracy"),
    "another length": (copy(BINS, "pre_mnli_bs8_s64/match"), "pre_mnli_bs8_s64", "none by the guide's names"),
    "a file of another length": (write("deberta_bs8_s64.om", b"IMOD"), "deberta_bs8_s64.om", "only runs over all rows"),
    "a batch size of 0": (
        write("deberta_bs0.om", b"IMOD"),
        "deberta_bs0.om",
        "its batch size '0' is not a whole number",
    ),
    "another version": (write("msame_bs8_mismatch.txt", b"?"), "msame_bs8_mismatch.txt", "has no version mismatch"),
    "a pipe": (pipe, "deberta_bs8.om", "it cannot be read: is not a regular file"),
    "a link in a circle": (circle, "deberta_bs8.om", "it cannot be read: Too many levels"),
    "a link to nothing that ends": (zero, LOG, "it cannot be read: is not a regular file"),
    "two different ones": (
        write("old/deberta_bs8.om", b"IMOD another"),
        "old/deberta_bs8.om",
        "is another one for the same place",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_does_not_fit_is_left_out_alone(guide: Path, what: str) -> None:
    spoil, name, reason = SPOILED[what]
    before = len(_look(guide).supplied)
    spoil(guide)
    assert reason in _reasons(guide)[name]
    assert len(_look(guide).supplied) >= before - 2


def test_the_same_file_twice_is_taken_once(guide: Path) -> None:
    shutil.copyfile(guide / "deberta_bs8.om", guide / "result/deberta_bs8.om")
    assert _reasons(guide)["result/deberta_bs8.om"] == f"it is the same as {guide}/deberta_bs8.om"
    shutil.copytree(guide / "result/outputs_bs8_om", guide / "x/outputs_bs8_om")
    assert "it is the same as" in _reasons(guide)["x/outputs_bs8_om/match"]


def test_digests_that_are_known_decide(guide: Path) -> None:
    reasons = _reasons(guide, digests={"models/demo/spm.model": "0" * 64})
    assert "it is not the profile's: expected sha256 000" in reasons["spm.model"]


def test_outputs_without_a_folder_of_their_own(guide: Path) -> None:
    for path in list((guide / OUTPUTS).iterdir()):
        path.rename(path.parent.parent / path.name)
    (guide / OUTPUTS).rmdir()
    [entry] = [entry for entry in _look(guide).supplied if entry.case is not None]
    assert entry.placements[0].target.name == OUTPUTS_NAME


def test_without_a_number_of_rows_the_tsv_tells_it(guide: Path) -> None:
    plan = _plan(rows=None)
    (guide / OUTPUTS / "input_1_output_0.bin").unlink()
    assert "1 outputs of 2 are missing" in _reasons(guide, plan)["result/outputs_bs8_om/match"]
    shutil.rmtree(guide / "MNLI")
    assert "result/outputs_bs8_om/match" not in _reasons(guide, plan)
    [bins] = [entry for entry in _look(guide, plan).supplied if "pre_mnli" in str(entry.target)]
    assert bins.note == "their number is not checked: there is no tsv"


def test_an_om_is_for_ascend(guide: Path) -> None:
    assert "an .om is for the ascend backend" in _reasons(guide, _plan("cpu"))["deberta_bs8.om"]
