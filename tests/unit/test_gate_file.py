from __future__ import annotations

from pathlib import Path

import pytest

from deberta.core import files
from deberta.core.errors import ConfigError, MissingError
from deberta.host.report import gates
from tests.mnli_helpers import REPOSITORY

OURS = REPOSITORY / gates.OURS


def test_what_is_committed_is_what_the_figures_belong_to() -> None:
    """The guide's counts, and the demo's own files: one that is made again gets a new hash here."""
    guide = gates.load(OURS, "mnli")
    assert guide["correct_rows"]["match"] == {"expected": 8879, "allowed": 20, "of": 9815}
    assert f"{8879 / 9815:.4f} {8919 / 9832:.4f}" == "0.9046 0.9071"
    demo = gates.load(OURS, "demo")
    assert demo["correct_rows"]["mismatch"] == {"expected": 1157, "allowed": 3, "of": 1200}
    assert len(demo["inputs"]) == 5
    assert {path: files.sha256_of(REPOSITORY / path) for path in demo["inputs"]} == demo["inputs"]
    general = gates.load(OURS, "nobodys")
    assert "correct_rows" not in general and "inputs" not in general
    assert general["agreement"] == {"allowed": 0} and general["reference"] == {"allowed": 20}
    assert {key: demo[key] for key in general} == {**general, "reference": {"allowed": 0}}


def test_a_profile_goes_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OURS.read_text() + "\n[profile.own]\nnear_tie_margin = 0\nfps = {at_least = 'ascend'}\n")
    found = gates.load(path, "own")
    assert (found["near_tie_margin"], found["fps"], found["official"]) == (0, {"at_least": "ascend"}, {"points": 0.5})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("near_tie_margin = 0.05", "", "[defaults] has no near_tie_margin"),
        ("near_tie_margin = 0.05", "near_tie_margin = nan", "[defaults]: near_tie_margin is nan, not a number from 0"),
        ("near_tie_margin", "near_ties", "[defaults] has 'near_ties', which is not one of"),
        ("[defaults]", "[default]", "has 'default', which is not one of: defaults, profile"),
        ("[defaults.official]", "[[defaults.official]]", "[defaults]: official is [{'points': 0.5}], not a table"),
        ("points = 0.5", "points = true", "[defaults]: official: points is True, not a number"),
        ("points = 0.5", "", "[defaults]: official has no points"),
        ("[defaults.sentinel]", "[defaults.sentinel]\nallowed = 3", "sentinel has 'allowed', and takes nothing"),
        (
            "expected = 8879\nallowed = 20",
            "expected = 8879\nallowed = -1",
            "[profile.mnli]: correct_rows.match: allowed is -1, not a whole number",
        ),
        ("expected = 8879", "expected = 9816", "[profile.mnli]: correct_rows.match is "),
        ("expected = 8879", "expected = 8879.5", "correct_rows.match: expected is 8879.5, not a whole number"),
        ("mnli.correct_rows.match]", "mnli.correct_rows.train]", "correct_rows has 'train', which is not one of"),
        ('"baseline"', '"best"', "[defaults]: fps: at_least is 'best', not one of: baseline, ascend"),
        ('"models/demo/spm.model"', '"../spm.model"', "[profile.demo]: inputs names '../spm.model'"),
        ("5f081d72", "5F081D72", "inputs: data/demo/MNLI/dev_matched.tsv is '5F081D72"),
        ("[defaults]", "[defaults", "is not TOML"),
    ],
)
def test_nothing_that_is_not_understood_is_left_unsaid(tmp_path: Path, old: str, new: str, says: str) -> None:
    """Also of a profile that is not asked for: a gate that is misspelt would be a gate that is not there."""
    path = tmp_path / "own.toml"
    text = OURS.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        gates.load(path, "nobodys")
    assert str(path) in str(caught.value) and says in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="Correct gates in invoke"):
        gates.load(tmp_path / "none.toml", "demo")
