"""Forgeries: of a signed tree each is found; of an unsigned one each is found, or said to be something it cannot show.

A fixed share runs in the ordinary suite; all of it by `invoke test --campaign`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deberta.host.report import archive, evidence, verification
from deberta.stages.verify import sign
from tests import pipeline_helpers
from tests.campaign.forgeries import UNSHOWN, Forgery, kept, other_kept
from tests.campaign.forgery_table import FORGERIES
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace
from tests.verify_helpers import ARTIFACTS, accepted, copy_tree, flip_logits, read, remake, write

SIGNATURE = str(ARTIFACTS.attestation())
SHARE = ("a label", "the page of a kept one", "outputs of no model", "the checkpoint is elsewhere")
OF_TWO = ("pages of two kept ones", "the signature of another acceptance")
KEY, FORGERS_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


def parameters(share: Collection[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in share else pytest.mark.campaign) for name in FORGERIES]


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return accepted(tmp_path_factory)


@pytest.fixture(name="twice", scope="module")
def _twice(made: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With a second acceptance, of one version; the latest is the first again."""
    workspace = Workspace(copy_tree(made, tmp_path_factory.mktemp("twice")))
    write(workspace.root / "settings.yaml", {**read(made.root / "settings.yaml"), "workspace": str(workspace.root)})
    for options in (("--version", "mismatch"), ()):
        workspace.succeed("acceptance", "--backend", "cpu", "--bs", "8", "--loops", "2", *options)
    return workspace


@pytest.fixture(name="key", scope="module")
def _key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of the public key."""
    kinds = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path = tmp_path_factory.mktemp("keys") / "key.pub"
    path.write_bytes(KEY.public_key().public_bytes(*kinds))
    return str(path)


@pytest.fixture(name="tree")
def _tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    callspec = getattr(request.node, "callspec", None)
    of_two = callspec is not None and callspec.params["name"] in OF_TWO
    return copy_tree(request.getfixturevalue("twice" if of_two else "made"), tmp_path / "elsewhere")


def signed_by(key: Ed25519PrivateKey, root: Path) -> dict[str, Any]:
    statement = verification.statement(evidence.walk(root, ARTIFACTS))
    return sign.sign(json.dumps(statement).encode(), key)


def verify(made: Workspace, tree: Path, *options: str, rows: int) -> tuple[int, str, str]:
    """Exit code, what was printed, and the part of it that says what was not checked."""
    done = made.run("verify", "--path", str(tree), "--strict", "--replay", str(rows), "--seed", "4", *options)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert not done.returncode or pipeline_helpers.error_line(done.stderr)
    return done.returncode, said, said.partition("\nnot checked:\n")[2].partition("\nwrong: ")[0]


def forge(forgery: Forgery, tree: Path) -> list[str]:
    """Do it, and return the options of verify that name what was forged."""
    if not forgery.kept:
        forgery.do(tree)
        return ["--backend", "cpu", "--profile", forgery.profile]
    before = {path.name for path in kept(tree).parent.iterdir()}
    here = kept(tree)
    forgery.do(here)
    names = {path.name for path in here.parent.iterdir()} - before
    return ["--acceptance", names.pop() if names else here.name]


@pytest.mark.parametrize("name", parameters(SHARE))
def test_of_an_unsigned_tree_it_is_found_or_named(made: Workspace, tree: Path, name: str) -> None:
    forgery = FORGERIES[name]
    code, said, unchecked = verify(made, tree, *forge(forgery, tree), rows=forgery.rows)
    if forgery.says in UNSHOWN:
        assert code == 6 and "\nverified: " in said, said
        assert re.search(UNSHOWN[forgery.says], unchecked), said
    else:
        assert code == 5, said
        assert re.search(forgery.says, said.partition("\nwrong: ")[2]), said


@pytest.mark.parametrize("name", parameters(SHARE[:2]))
def test_of_a_signed_tree_it_is_found(made: Workspace, key: str, tree: Path, name: str) -> None:
    forgery = FORGERIES[name]
    archive.add_signature(kept(tree), ARTIFACTS, json.dumps(signed_by(KEY, kept(tree))))
    write(tree / SIGNATURE, signed_by(KEY, tree))
    code, said, _ = verify(made, tree, *forge(forgery, tree), "--key", key, rows=4)
    assert code == 5, said
    wrong = said.partition("\nwrong: ")[2]
    assert re.search(
        r"expected (sha256|dirHash) \w{64} \(says \S+|is the name of another|is not results|dsse", wrong
    ), said


def payload(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def alter(tree: Path) -> None:
        envelope = read(tree / SIGNATURE)
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        write(tree / SIGNATURE, envelope)

    return alter


def envelope_of(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def alter(tree: Path) -> None:
        envelope = read(tree / SIGNATURE)
        change(envelope)
        write(tree / SIGNATURE, envelope)

    return alter


def signed_again(tree: Path) -> None:
    flip_logits(tree)
    remake(tree)
    write(tree / SIGNATURE, signed_by(FORGERS_KEY, tree))


def of_another(tree: Path) -> None:
    write(tree / SIGNATURE, signed_by(KEY, other_kept(tree)))


SIGNATURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "the signature is removed": (lambda tree: (tree / SIGNATURE).unlink(), "expected a signature by the key given"),
    "the payload": (payload(lambda content: content["predicate"].update(verdict="accepted")), "the signature is bad"),
    "a subject less": (payload(lambda content: content["subject"].pop()), "the signature is bad"),
    "a subject's digest": (
        payload(lambda content: content["subject"][0]["digest"].update(sha256="1" * 64)),
        "the signature is bad",
    ),
    "the signature's bytes": (
        envelope_of(lambda envelope: envelope["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode())),
        "the signature is bad",
    ),
    "the key's id": (
        envelope_of(lambda envelope: envelope["signatures"][0].update(keyid="sha256:" + "1" * 64)),
        "as the key, and the signature is by",
    ),
    "the payload's type": (envelope_of(lambda envelope: envelope.update(payloadType="text/plain")), "text/plain"),
    "no signatures": (envelope_of(lambda envelope: envelope.update(signatures=[])), "signed by nobody"),
    "signed again by a forger": (signed_again, "not by the key given"),
    "the signature of another acceptance": (of_another, "was signed for another report"),
}


@pytest.mark.campaign
@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_that_is_not_the_reports_is_found(made: Workspace, key: str, tree: Path, name: str) -> None:
    write(tree / SIGNATURE, signed_by(KEY, tree))
    alter, says = SIGNATURES[name]
    alter(tree)
    code, said, _ = verify(made, tree, "--backend", "cpu", "--key", key, rows=4)
    assert code == 5 and re.search(says, said), said


@pytest.mark.campaign
def test_who_made_it_is_not_shown_without_a_key(made: Workspace, tree: Path) -> None:
    signed_again(tree)
    code, said, unchecked = verify(made, tree, "--backend", "cpu", rows=1)
    assert code == 6 and re.search(UNSHOWN["who made it"], unchecked), said


def test_an_untouched_tree_that_is_signed_is_in_order(made: Workspace, key: str, tree: Path) -> None:
    """Or the tests above would show nothing; so is its kept acceptance."""
    options = ("--path", str(tree), "--key", key, "--strict", "--replay", "4")
    write(tree / SIGNATURE, signed_by(KEY, tree))
    archive.add_signature(kept(tree), ARTIFACTS, json.dumps(signed_by(KEY, kept(tree))))
    for name in ((), ("--acceptance", kept(tree).name)):
        assert "signed by key sha256:" in made.succeed("verify", *options, *name)


def test_the_page_has_the_same_list() -> None:
    text = (REPOSITORY / "docs/verify.md").read_text(encoding="utf-8")
    section = text.partition("## What an unsigned tree cannot show\n")[2].partition("\n## ")[0]
    assert re.findall(r"^- \*\*(.+?)\*\*:", section, re.MULTILINE) == list(UNSHOWN)
    tried = {forgery.says for forgery in FORGERIES.values()}
    assert tried >= UNSHOWN.keys() - {"who made it"}
    assert len(FORGERIES) >= 40
