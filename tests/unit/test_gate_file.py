from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from deberta.core import files
from deberta.core.errors import ConfigError, MissingError
from deberta.core.job import AllowedRows, ExpectedRows, FpsGate, OfficialGate
from deberta.host.report import gates
from tests.mnli_helpers import REPOSITORY

OURS = REPOSITORY / gates.OURS


def test_what_is_committed_is_what_the_figures_belong_to() -> None:
    """The guide's counts, and the demo's own files: one that is made again gets a new hash here."""
    guide = gates.load(OURS, "mnli")
    assert guide.correct_rows and guide.correct_rows.match == ExpectedRows(expected=8879, allowed=20, of=9815)
    assert f"{8879 / 9815:.4f} {8919 / 9832:.4f}" == "0.9046 0.9071"
    demo = gates.load(OURS, "demo")
    assert demo.correct_rows and demo.correct_rows.mismatch == ExpectedRows(expected=1157, allowed=3, of=1200)
    assert demo.inputs and len(demo.inputs) == 5
    assert {path: files.sha256_of(REPOSITORY / path) for path in demo.inputs} == demo.inputs
    general = gates.load(OURS, "nobodys")
    assert general.correct_rows is None and general.inputs is None
    assert general.agreement == AllowedRows(allowed=0) and general.reference == AllowedRows(allowed=20)
    own = structs.replace(demo, correct_rows=None, inputs=None)
    assert own == structs.replace(general, reference=AllowedRows(allowed=0))


def test_a_profile_goes_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OURS.read_text() + "\n[profile.own]\nnear_tie_margin = 0\nfps = {at_least = 'ascend'}\n")
    own = gates.load(path, "own")
    assert (own.near_tie_margin, own.fps, own.official) == (0, FpsGate(at_least="ascend"), OfficialGate(points=0.5))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("near_tie_margin = 0.05", "", "[defaults] has no near_tie_margin"),
        ("near_tie_margin = 0.05", "near_tie_margin = nan", "[defaults]: near_tie_margin: Expected `float` >= 0.0"),
        ("near_tie_margin", "near_ties", "[defaults]: Object contains unknown field `near_ties`, which is not one of"),
        ("[defaults]", "[default]", "Object contains unknown field `default`, which is not one of: defaults, profile"),
        ("[defaults.official]", "[[defaults.official]]", "[defaults]: official: Expected `object | null`, got `array`"),
        ("points = 0.5", "points = true", "[defaults]: official.points: Expected `float`, got `bool`"),
        ("points = 0.5", "", "[defaults]: official: Object missing required field `points`"),
        (
            "[defaults.sentinel]",
            "[defaults.sentinel]\nallowed = 3",
            "sentinel: Object contains unknown field `allowed`",
        ),
        (
            "expected = 8879\nallowed = 20",
            "expected = 8879\nallowed = -1",
            "[profile.mnli]: correct_rows.match.allowed: Expected `int` >= 0",
        ),
        (
            "expected = 8879",
            "expected = 9816",
            "[profile.mnli]: correct_rows.match: allowed 20, expected 9816, of 9815 do not increase",
        ),
        ("expected = 8879", "expected = 8879.5", "correct_rows.match.expected: Expected `int`, got `float`"),
        ("mnli.correct_rows.match]", "mnli.correct_rows.train]", "correct_rows: Object contains unknown field `train`"),
        ('"baseline"', '"best"', "[defaults]: fps.at_least: Expected `str` matching regex '^(baseline|ascend)$'"),
        ('"models/demo/spm.model"', '"../spm.model"', "[profile.demo]: inputs names '../spm.model'"),
        ("5f081d72", "5F081D72", "[profile.demo]: inputs[...]: Expected `str` matching regex"),
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
