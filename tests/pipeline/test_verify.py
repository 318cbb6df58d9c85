"""verify and sign on an acceptance run: every kind of tampering is found and named, an untouched copy passes.

Tampering comes in two strengths: a file alone, which its digest shows; and with every digest that could show it made
to fit, which leaves recomputing, replaying and the signature.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from deberta.core.errors import DataError, DebertaError, MissingError
from deberta.host.report import evidence, verification
from deberta.host.report.verification import VerificationRequest
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace, error_line
from tests.verify_helpers import (
    ARTIFACTS,
    BOM,
    CHECKPOINT,
    EVALUATION,
    JOB,
    PAGE,
    REPORT,
    RESULTS,
    ROW,
    ROWS,
    TSV,
    accepted,
    change_count,
    copy_tree,
    edit,
    edit_log,
    edit_page,
    flip_byte,
    flip_logits,
    outputs,
    read,
    remake,
    request,
    swap_gold,
)  # fmt: skip

Tamper = Callable[[Path], object]


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return accepted(tmp_path_factory)


@pytest.fixture(name="tree")
def _tree(made: Workspace, tmp_path: Path) -> Path:
    return copy_tree(made, tmp_path / "elsewhere")


def wrong(root: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    """What verify prints as wrong."""
    with pytest.raises(DataError) as raised:
        verification.verify(request(root, **options))
    assert "does not verify" in str(raised.value)
    _, _, listed = capsys.readouterr().out.partition("\nwrong: ")
    count, *lines = listed.strip().splitlines()
    assert int(count) == len(lines)
    return [line.strip() for line in lines]


# What a digest shows. name: what is done, and the one thing that is found, as a regular expression
ALTERED: dict[str, tuple[Tamper, str]] = {
    "a logit": (flip_logits, r"outputs_bs8_om/match/\S+: expected dirHash \w+ \(says .+\), found dirHash \w+"),
    "a count": (change_count, rf"{REPORT}: expected sha256 \w+ \(says .+\), found sha256 \w+"),
    "the accuracy text": (
        lambda root: edit(root / EVALUATION, "eval_samples = 64", "eval_samples = 65"),
        f"{EVALUATION}: expected sha256",
    ),
    "a gold label": (swap_gold, f"{TSV}: expected sha256"),
    "the checkpoint": (lambda root: flip_byte(root / CHECKPOINT), f"{CHECKPOINT}: expected sha256"),
    "the graph": (lambda root: flip_byte(root / ARTIFACTS.onnx), f"{ARTIFACTS.onnx}: expected sha256"),
    "the compiled model": (
        lambda root: flip_byte(root / ARTIFACTS.compiled(8).with_suffix(".bin")),
        r"deberta_bs8\.bin: expected sha256",
    ),
    "a bin": (
        lambda root: flip_byte(root / ARTIFACTS.bins(8, "match") / "input_ids/input_3.bin"),
        "pre_mnli_bs8/match: expected dirHash",
    ),
    "a timing log": (edit_log, r"msame_bs8_match\.txt: expected sha256"),
    "the page": (edit_page, f"{PAGE}: expected sha256"),
    "an output more": (
        lambda root: (outputs(root) / "input_8_output_0.bin").write_bytes(bytes(96)),
        r"match/\S+: expected dirHash",
    ),
    "a name that is no text": (
        lambda root: (outputs(root) / os.fsdecode(b"\xff\x1b")).touch(),
        r"match/\S+: expected dirHash",
    ),
    "a name of two lines": (
        lambda root: os.rename(outputs(root) / "input_1_output_0.bin", outputs(root) / "a\nb"),
        r"match/\S+: expected dirHash .+, found what cannot be read \(has a line end in its name\)",
    ),
    "an output less": (
        lambda root: (outputs(root) / "input_7_output_0.bin").unlink(),
        r"match/\S+: expected dirHash",
    ),
    "no outputs": (lambda root: shutil.rmtree(outputs(root)), r"match/\S+: expected dirHash \w+ .+, found nothing"),
    "a record is gone": (
        lambda root: (root / RESULTS / "outputs_bs8_om/match.record.json").unlink(),
        r"outputs_bs8_om/match/\S+: has no record \(\S+\), so nothing says what made it",
    ),
    "a record leads out of the tree": (
        lambda root: edit(root / f"{EVALUATION}.record.json", f'"name": "{TSV}"', '"name": "../secret"'),
        r"record\.json: names \.\./secret, which leads out of the tree",
    ),
    "no bill of materials": (lambda root: (root / BOM).unlink(), f"{BOM}: is missing, and an acceptance has one"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_what_was_altered_is_found_by_its_digest(tree: Path, name: str) -> None:
    tamper, pattern = ALTERED[name]
    assert not evidence.collect(tree, ARTIFACTS).findings
    tamper(tree)
    found = list(dict.fromkeys(map(str, evidence.collect(tree, ARTIFACTS).findings)))
    assert any(re.search(pattern, line) for line in found), found
    assert len(found) <= 2, found


def _outside(path: Path) -> Path:
    return Path(str(path).partition("/elsewhere/")[0]) / "outside"


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Move a file or folder out of the tree, and make something else in its place."""
    os.rename(path, _outside(path))
    make(path)


def _link_out(path: Path) -> None:
    _replace(path, lambda path: path.symlink_to(_outside(path)))


# What may not be opened. name: what is done, and what has to be found among the rest
CLOSED: dict[str, tuple[Tamper, str]] = {
    "an output by a link": (
        lambda root: _link_out(outputs(root) / "input_3_output_0.bin"),
        "input_3_output_0.bin, which leads",
    ),
    "the outputs by a link": (lambda root: _link_out(outputs(root)), "bs8_om/match.*, which leads out"),
    "an output is a pipe": (
        lambda root: _replace(outputs(root) / "input_3_output_0.bin", os.mkfifo),
        r"cannot be read \(is not a regular file\)",
    ),
    "the tsv by a link": (lambda root: _link_out(root / TSV), f"names {TSV}, which leads out"),
    "the checkpoint by a link": (lambda root: _link_out(root / CHECKPOINT), f"names {CHECKPOINT}, which leads out"),
    "the graph is zero": (
        lambda root: _replace(root / ARTIFACTS.onnx, lambda path: path.symlink_to("/dev/zero")),
        f"names {ARTIFACTS.onnx}, which leads out",
    ),
    "the graph is a pipe": (lambda root: _replace(root / ARTIFACTS.onnx, os.mkfifo), "is not a regular file"),
    "the page by a link": (lambda root: _link_out(root / PAGE), f"names {PAGE}, which leads out"),
    "the models by a link": (lambda root: _link_out(root / ARTIFACTS.models), "names models/small, which leads out"),
    "an absolute tsv": (
        lambda root: edit(root / JOB, f'"match": "{TSV}"', '"match": "/etc/passwd"'),
        "names /etc/passwd, which leads out",
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_nothing_outside_the_tree_and_no_device_is_opened(
    tree: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    tamper, pattern = CLOSED[name]
    tamper(tree)
    lines = wrong(tree, capsys, rows=3)
    assert any(re.search(pattern, line) for line in lines), lines
    assert any("is not made again" in line for line in lines), lines
    assert not any("root:" in line for line in lines)


def test_links_of_the_users_own_workspace_may_lead_anywhere(tree: Path) -> None:
    _link_out(tree / ARTIFACTS.models)
    assert verification.verify(replace(request(tree), own=True)).files


ODD_VALUES = 100  # in one run
ODD: tuple[Any, ...] = (
    "x",
    "",
    7,
    -1.5,
    True,
    None,
    [],
    {},
    [[]],
    {"a": [1]},
    "../x",
    "/etc/passwd",
    10**17,
    "\x1b[2J",
)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    for key in content if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from _places(content[key])


def test_odd_values_in_records_and_the_job_are_findings(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever type a value has that nothing but a record's reader expects: findings, no traceback."""
    random = Random(11)
    paths = [*sorted(tree.rglob("*.record.json")), tree / JOB, tree / REPORT]
    for _ in range(ODD_VALUES):
        path = random.choice(paths)
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        container, key = random.choice(list(_places(content)))
        container[key] = odd = random.choice(ODD)
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            collected = evidence.collect(tree, ARTIFACTS)
            evidence.check_verdict(collected, REPOSITORY, request(tree).profile)
            evidence.compare_code(collected, REPOSITORY)
            verification._data_options(collected)
            verification._bill(request(tree), collected, tree.parent)
            list(verification._replayable(collected, collected.job) if collected.job else [])
        except DebertaError:
            pass
        except Exception as error:
            raise AssertionError(f"{path}: {key} is {odd!r}") from error
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["a name that is no text", "a name of two lines"])
def test_names_of_files_are_shown(name: str, made: Workspace, tree: Path) -> None:
    ALTERED[name][0](tree)
    done = made.run("verify", "--path", str(tree), "--replay", "3")
    assert done.returncode == 5 and re.search(ALTERED[name][1], done.stdout), done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr and error_line(done.stderr)


def test_an_absolute_name_is_not_opened(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    edit(tree / f"{EVALUATION}.record.json", f'"name": "{TSV}"', f'"name": "{tmp_path}/secret"')
    collected = evidence.collect(tree, ARTIFACTS)
    assert f"{tmp_path}/secret: only files of the tree are opened" in collected.unchecked
    assert not any("secret" in finding for finding in collected.findings)


def test_all_that_is_wrong_is_named_together(made: Workspace, tree: Path) -> None:
    """By the command, in a tree of which hardly anything is left whole."""
    for name in ("the checkpoint", "a gold label", "a timing log", "an output less", "the page"):
        ALTERED[name][0](tree)
    (tree / JOB).write_text("{}")
    (tree / f"{EVALUATION}.record.json").write_text("{}")
    done = made.run("verify", "--path", str(tree), "--replay", "3")
    assert done.returncode == 5 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert error_line(done.stderr)
    for name in ("the checkpoint", "a gold label", "a timing log", "an output less", "the page"):
        assert re.search(ALTERED[name][1], done.stdout), name
    assert re.search(rf"{JOB}: does not fit its schema: Object missing required field", done.stdout)
    assert re.search(r"eval_bs8_match\.txt\.record\.json: is not a record", done.stdout)


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of everything in a tree, folders included."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in (root, *root.rglob("*"))}


def test_an_untouched_copy_verifies_and_nothing_is_written(made: Workspace, tree: Path, tmp_path: Path) -> None:
    """By the command, without .cache and settings, read-only, and with rows replayed."""
    folders = [path for path in (tree, *tree.rglob("*")) if path.is_dir()]
    for path in tree.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o222)
    before = state(tree)
    said = made.succeed("verify", "--path", str(tree), "--replay", "24", "--seed", "5")
    assert state(tree) == before
    assert "backend: cpu (the only one with a report)" in said and "verified: results/small/cpu/report.json" in said
    assert re.search(r"rows replayed: 24 \(seed 5\): largest difference of a logit [\d.e-]+ \(at most 0\.001\)", said)
    assert re.search(r"files checked: [1-9]\d+, [\d,]+ bytes, by 1\d records", said)
    assert re.search(r"numbers recomputed: [1-9]\d{2,}", said)
    assert "signature: not signed" in said and "verdict in the report: checked" in said
    for path in folders:
        path.chmod(0o755)


def test_what_fits_everywhere_but_not_the_model_is_found_by_replaying(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logits of one row, and the tokens of another."""
    flip_logits(tree)
    ids = tree / ARTIFACTS.bins(8, "match") / "input_ids/input_6.bin"
    values = np.fromfile(ids, "<i4").reshape(8, -1)
    values[0, 1:3] = values[0, 2:0:-1]
    values.tofile(ids)
    remake(tree)
    verification.verify(request(tree))  # all of it fits
    capsys.readouterr()
    said = "\n".join(wrong(tree, capsys, rows=2 * ROWS))
    assert re.search(rf"input_5_output_0\.bin: row 0 \(bs 8, {TSV} line {ROW + 2}\): label \w+, the model says", said)
    assert f"row {ROW + 8} is not what the tokenizer makes of {TSV} line {ROW + 10}" in said


def test_figures_of_an_older_model_are_no_error(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A report says which they are; how they were made can no longer be followed, and that is said too."""
    config = workspace.root / ARTIFACTS.models / "model_config.json"
    edit(config, '"layer_norm_eps": 1e-07', '"layer_norm_eps": 1e-06')
    workspace.succeed("evaluate", "--backend", "cpu", "--bs", "4", "--version", "match")
    workspace.succeed("report", "--backend", "cpu")
    verification.verify(request(workspace.root, rows=3))
    said = capsys.readouterr().out
    assert "how results/small/cpu/eval_bs8_match.txt was made (bs 8, match: outdated: another model)" in said
    assert "verified: " in said and "eval_bs4" not in said


def test_another_profile_and_other_gates_are_said(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tree of a profile that is not known here is taken by its own word, which is not hidden."""
    verification.verify(VerificationRequest(REPOSITORY, tree, ARTIFACTS, lambda: Path(sys.executable)))
    assert "profile small is not in this invoke.yaml: the tree's own are taken" in capsys.readouterr().out


def test_without_a_report(made: Workspace, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="invoke acceptance --profile small"):
        verification.verify(request(tmp_path))
    assert "no folder" in made.fail(3, "verify", "--path", str(tmp_path / "nowhere"))
    assert "there is no report of profile small" in made.fail(3, "verify", "--path", str(tmp_path))
    assert "--replay '0'" in made.fail(2, "verify", "--replay", "0")


@pytest.fixture(name="workspace")
def _workspace(made: Workspace, tree: Path) -> Workspace:
    """The copy with settings of its own, to sign in."""
    settings = read(made.root / "settings.yaml")
    (tree / "settings.yaml").write_text(json.dumps({**settings, "workspace": str(tree)}), encoding="utf-8")
    return Workspace(tree)


def test_signed_and_verified_by_the_key_that_was_used(
    workspace: Workspace, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, other = tmp_path / "key.pem", tmp_path / "other.pem"
    for path in (key, other):
        workspace.succeed("sign", "--new-key", str(path))
    said = workspace.succeed("sign", "--key", str(key))
    [identity] = set(re.findall(r"signed by key (sha256:\w{64})", said))
    envelope = tree / ARTIFACTS.attestation()
    strict = ("verify", "--key", f"{key}.pub", "--strict", "--replay", "8", "--require")
    said = workspace.succeed(*strict, "checked")
    assert f"signed by key {identity}" in said
    assert said.splitlines()[-1].endswith("(the signature vouches for it)")
    assert "the verdict of" in workspace.fail(6, *strict, "accepted")
    record = tree / f"{EVALUATION}.record.json"
    whole = record.read_bytes()
    record.write_text(json.dumps(read(record)))  # the same record, other bytes: only what was signed shows it
    [line] = wrong(tree, capsys)
    assert line.startswith(f"{EVALUATION}.record.json: expected sha256") and "report.dsse.json" in line
    lines = wrong(tree, capsys, key=Path(f"{other}.pub"))
    assert len(lines) == 2 and any(f"is signed by {identity}, not by the key given" in line for line in lines)
    record.write_bytes(whole)

    public, content = Path(f"{key}.pub"), read(envelope)
    signed = base64.b64decode(content["payload"])
    for payload, without_key in (
        (signed.replace(b'"checked"', b'"accepted"'), "was signed for another report"),
        (signed.replace(b": ", b":"), "who vouches for the report (not checked: no key given)"),  # of the same meaning
    ):
        envelope.write_text(json.dumps({**content, "payload": base64.b64encode(payload).decode()}))
        assert "the signature is bad" in "".join(wrong(tree, capsys, key=public))
        done = workspace.run("verify", "--strict")
        assert done.returncode in (5, 6) and without_key in done.stderr
    envelope.unlink()
    [line] = wrong(tree, capsys, key=public)
    assert "expected a signature by the key given, found none" in line


def test_what_does_not_verify_is_not_signed(workspace: Workspace, tree: Path, tmp_path: Path) -> None:
    workspace.succeed("sign", "--new-key", str(tmp_path / "key.pem"))
    edit(tree / EVALUATION, "eval_samples = 64", "eval_samples = 65")
    assert "does not verify" in workspace.fail(5, "sign", "--key", str(tmp_path / "key.pem"))
    assert not (tree / ARTIFACTS.attestation()).exists()
    os.chmod(tmp_path / "key.pem", 0o644)
    assert "chmod 600" in workspace.fail(2, "sign", "--key", str(tmp_path / "key.pem"))
    assert "give --key PRIVATE.pem" in workspace.fail(2, "sign")
