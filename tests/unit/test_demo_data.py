"""The demo's synthetic NLI: same bytes for a seed, GLUE's columns, MNLI's spread; a hypothesis alone tells nothing."""

from __future__ import annotations

import collections
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from deberta.core import contract, mnli, paths
from deberta.host.plan import evaluation, profiles
from deberta.host.plan.plan import Plan
from deberta.stages.demo import demo_data, demo_text
from deberta.stages.model import config
from deberta.stages.model import tokenizer as tokenizers_of_guide
from tests.mnli_helpers import DEV_HEADER, REPOSITORY, run_stage

DATA = REPOSITORY / "data" / "demo" / "MNLI"
MODELS = REPOSITORY / "models" / "demo"


def _make(folder: Path, rows: int = 200, seed: int = 5) -> dict[str, str]:
    """Run the stage and return the digest of every file it wrote."""
    done = run_stage(
        "demo-data",
        *("--data", folder / "MNLI", "--tokenizer", folder / "spm.model", "--config", folder / "model_config.json"),
        *("--train-rows", rows, "--seed", seed, "--summary", folder / "summary.json"),
    )
    assert done.returncode == 0, done.stderr
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "summary.json"  # which holds the peak of memory
    }


def test_a_seed_gives_the_same_bytes_in_another_process_and_another_seed_gives_others(tmp_path: Path) -> None:
    first, second = _make(tmp_path / "one"), _make(tmp_path / "two")
    assert first == second
    assert set(first) >= {"MNLI/train.tsv", "MNLI/dev_matched.tsv", "MNLI/dev_mismatched.tsv", "spm.model"}
    other = _make(tmp_path / "three", seed=6)
    assert all(first[name] != other[name] for name in first if name.endswith((".tsv", ".model")))
    assert mnli.count(tmp_path / "one" / "MNLI" / "train.tsv", mnli.TRAIN_COLUMNS) == 200
    header = (tmp_path / "one" / "MNLI" / "train.tsv").read_text(encoding="utf-8").split("\n")[0].split("\t")
    assert header == [*DEV_HEADER[:11], "gold_label"]


def test_the_first_rows_are_what_they_were(tmp_path: Path) -> None:
    """Python promises random()'s sequence; this would show a change of anything else that the text depends on."""
    demo_data.write_split(tmp_path / "dev.tsv", "golden", 50, demo_text.MATCHED_GENRES, train=False)
    digest = hashlib.sha256((tmp_path / "dev.tsv").read_bytes()).hexdigest()
    assert digest == "157ef0b1b889cf56f1534c6f45e4f46aed3dacc8b138a07f652f9eaa044d3488"


@pytest.mark.parametrize("version", contract.VERSIONS)
def test_the_committed_dev_files_are_the_generators(version: str, tmp_path: Path) -> None:
    seed = evaluation.DEMO_SEED
    genres = demo_text.MATCHED_GENRES if version == "match" else demo_text.MISMATCHED_GENRES
    name = contract.DEV_FILES[version]
    demo_data.write_split(tmp_path / name, f"{seed} {version}", demo_data.DEV_ROWS, genres, train=False)
    assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


@pytest.mark.parametrize("version", contract.VERSIONS)
def test_the_dev_files_have_mnlis_columns_genres_balance_lengths_and_oddities(version: str) -> None:
    path = DATA / contract.DEV_FILES[version]
    text = path.read_text(encoding="utf-8")
    assert text.split("\n")[0].split("\t") == DEV_HEADER
    rows = list(mnli.rows(path))
    assert len(rows) == 1200
    assert collections.Counter(row.label for row in rows) == {0: 400, 1: 400, 2: 400}
    genres = collections.Counter(row.genre for row in rows)
    assert set(genres) == set(demo_text.MATCHED_GENRES if version == "match" else demo_text.MISMATCHED_GENRES)
    assert min(genres.values()) > 180

    premises = [row.premise for row in rows]
    assert any(premise.count('"') % 2 for premise in premises)
    assert any("  " in premise for premise in premises)
    for odd in ("…", "—", "–", "“", "🙂", "☕", "½", "Óscar", "Zoë"):
        assert odd in text, odd
    assert any(any(0xFF01 <= ord(c) <= 0xFF5E for c in premise) for premise in premises)

    tokenizer = tokenizers_of_guide.load(MODELS / "spm.model")
    lengths = sorted(len(e.ids) for e in tokenizer.encode_batch([(row.premise, row.hypothesis) for row in rows]))
    # MNLI's, and room above: the rows that are too long on purpose, and marks that are tokens of their own.
    for share, tokens_of_mnli in ((0.5, 38), (0.9, 67), (0.95, 77), (0.99, 105)):
        assert 0.9 <= lengths[int(len(lengths) * share)] / tokens_of_mnli <= 1.7, share
    assert 3 <= sum(length > contract.SEQUENCE_LENGTH for length in lengths) <= 12


def test_truncation_keeps_every_fact() -> None:
    """Of a pair that is cut to 256 tokens, the lost end of the premise is text without entities: the label holds."""
    tokenizer = tokenizers_of_guide.load(MODELS / "spm.model", contract.SEQUENCE_LENGTH)
    for version in contract.VERSIONS:
        for row in mnli.rows(DATA / contract.DEV_FILES[version]):
            encoded = tokenizer.encode(row.premise, row.hypothesis)
            if encoded.overflowing:
                kept = max(end for (start, end), part in zip(encoded.offsets, encoded.sequence_ids) if part == 0)
                assert not [name for name in demo_text.ENTITIES if name in row.premise[kept:]]
                assert encoded.ids[-1] == tokenizer.token_to_id("[SEP]")
                assert sum(part == 1 for part in encoded.sequence_ids) == len(tokenizer.encode(row.hypothesis).ids) - 2


def hypothesis_only_accuracy(train_rows: int = 20000) -> dict[str, float]:
    """Naive Bayes over the hypothesis' words, trained on generated pairs, on the committed dev files."""
    counts: dict[str, collections.Counter[str]] = {label: collections.Counter() for label in contract.LABELS}
    for pair in demo_data.pairs("baseline", train_rows, demo_text.MATCHED_GENRES):
        words = pair.hypothesis.split()
        counts[pair.label].update([*words, *map(" ".join, zip(words, words[1:]))])
    totals = {label: sum(found.values()) for label, found in counts.items()}

    def guess(hypothesis: str) -> str:
        words = hypothesis.split()
        features = [*words, *map(" ".join, zip(words, words[1:]))]
        return max(
            contract.LABELS,
            key=lambda label: sum(math.log((counts[label][f] + 1) / (totals[label] + 1000)) for f in features),
        )

    return {
        version: sum(guess(row.hypothesis) == contract.LABELS[row.label] for row in rows) / len(rows)
        for version in contract.VERSIONS
        for rows in [list(mnli.rows(DATA / contract.DEV_FILES[version]))]
    }


def test_a_hypothesis_alone_tells_nothing() -> None:
    assert all(accuracy < 0.45 for accuracy in hypothesis_only_accuracy().values())


def test_the_vocabulary_and_the_config_belong_together() -> None:
    tokenizer = tokenizers_of_guide.load(MODELS / "spm.model")
    assert [tokenizer.id_to_token(i) for i in range(4)] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    assert tokenizer.token_to_id("[MASK]") == demo_data.PIECES
    assert tokenizers_of_guide.has_character_map(tokenizer)
    assert json.loads((MODELS / "model_config.json").read_text(encoding="utf-8")) == demo_data.MODEL_CONFIG
    made = config.read(MODELS / "model_config.json")
    assert tokenizers_of_guide.vocabulary_size(tokenizer) <= made.vocab_size
    for name in demo_text.ENTITIES:  # words of the rule are one piece each, which keeps the task small
        assert len(tokenizer.encode(name, add_special_tokens=False).ids) <= 2, name


def test_what_is_committed_stays_small() -> None:
    of_demo = paths.Artifacts("demo")
    names = [*MODELS.glob("*.*"), *(DATA / name for name in contract.DEV_FILES.values())]
    committed = [path for path in names if path.suffix in (".bin", ".json", ".model", ".tsv")]
    assert REPOSITORY / of_demo.models == MODELS
    assert sum(path.stat().st_size for path in committed if "record" not in path.name) < 6 * 2**20


def test_the_steps_that_make_it_again_are_arguments_that_the_stages_take() -> None:
    rows = {"match": 1200, "mismatch": 1200}
    files = {"checkpoint": "m.bin", "config": "c.json", "tokenizer": "spm.model", "dataset": "MNLI"}
    plan = Plan(profiles.load("demo", {"demo": {**files, "rows": rows}}), "cpu")
    for step in evaluation.remake_demo(plan):
        assert not [argument for argument in step.arguments if argument.startswith("/")]
        shown = subprocess.run(
            [sys.executable, "-m", step.module, "--help"], capture_output=True, text=True, check=True
        )
        assert all(argument in shown.stdout for argument in step.arguments if argument.startswith("--"))


@pytest.mark.parametrize(("option", "value"), [("--train-rows", "0"), ("--train-rows", "x"), ("--seed", "-1")])
def test_a_bad_number_is_refused_by_name(option: str, value: str, tmp_path: Path) -> None:
    given = {"--train-rows": "9", "--seed": "1", option: value}
    done = run_stage(
        "demo-data",
        *("--data", tmp_path, "--tokenizer", tmp_path / "t", "--config", tmp_path / "c", "--summary", tmp_path / "s"),
        *(word for pair in given.items() for word in pair),
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option} '{value}'")
    assert not list(tmp_path.iterdir())
