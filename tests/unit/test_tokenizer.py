"""The tokenizer gives the ids of the guide's, from each kind of source, and refuses what it could not do exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, normalizers

from deberta.core.errors import DataError, MissingError
from deberta.stages.model import tokenizer as guide
from tests.mnli_helpers import SPM_MODEL, golden


def changed_model(path: Path, change: Callable[[Any], None]) -> Path:
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(SPM_MODEL.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def check_golden(tokenizer: Tokenizer) -> None:
    """`tokenizer` truncates to 256 tokens."""
    rows = golden()
    encoded = tokenizer.encode_batch([(premise, hypothesis) for premise, hypothesis, _ in rows])
    wrong = [row for row, encoding in zip(rows, encoded) if encoding.ids != row[2]]
    assert not wrong
    assert sum(bool(encoding.overflowing) for encoding in encoded) >= 8  # cut on the left, on the right, on both


def test_golden_ids_from_a_bare_model() -> None:
    tokenizer = guide.load(SPM_MODEL, 256)
    check_golden(tokenizer)
    assert [tokenizer.token_to_id(token) for token in guide.SPECIAL] == [0, 1, 2, 3, 400]
    assert guide.vocabulary_size(tokenizer) == 401
    assert guide.has_character_map(tokenizer)


def test_golden_ids_from_a_folder_with_only_the_model(tmp_path: Path) -> None:
    shutil.copy(SPM_MODEL, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    check_golden(guide.load(tmp_path, 256))
    assert guide.source(tmp_path).name == "spm.model"


def test_tokenizer_json_comes_first_and_its_own_padding_is_off(tmp_path: Path) -> None:
    saved = guide.load(SPM_MODEL)
    saved.enable_padding(length=16)
    saved.enable_truncation(max_length=8)
    saved.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "spm.model").write_bytes(b"not read")
    tokenizer = guide.load(tmp_path)
    assert len(tokenizer.encode("the boat", "a letter, again and again").ids) not in (8, 16)
    check_golden(guide.load(tmp_path, 256))


def test_lost_character_map_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    content = json.loads(guide.load(SPM_MODEL).to_str())
    content["normalizer"]["normalizers"] = [
        n for n in content["normalizer"]["normalizers"] if n["type"] != "Precompiled"
    ]
    path.write_text(json.dumps(content))
    assert not guide.has_character_map(guide.load(path))
    unmapped = changed_model(tmp_path / "spm.model", lambda model: model.normalizer_spec.Clear())
    assert not guide.has_character_map(guide.load(unmapped))


def test_lower_case_and_punctuation_switches(tmp_path: Path) -> None:
    shutil.copy(SPM_MODEL, tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"do_lower_case": true}')
    lowered = guide.load(tmp_path)
    assert lowered.encode("THE Boat", "").ids == lowered.encode("the boat", "").ids
    beside = guide.load(tmp_path / "spm.model")  # the file alone was given: what is beside it is not an input
    assert beside.to_str() == guide.load(SPM_MODEL).to_str()
    config.write_text('{"split_by_punct": true}')
    split = guide.load(tmp_path)
    plain = guide.load(SPM_MODEL)
    boat, comma, again = (plain.encode(part, "").ids[1:-2] for part in ("boat", ",", "again"))
    assert split.encode("boat,again", "").ids == [1, *boat, *comma, *again, 2, 2]
    assert plain.encode("boat,again", "").ids != [1, *boat, *comma, *again, 2, 2]
    config.write_text("[1]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json does not fit its schema: Expected `object`"):
        guide.load(tmp_path)


def rename(index: int, name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.pieces[index].piece = name

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: setattr(model.trainer_spec, "model_type", 2), "type BPE, expected UNIGRAM"),
        (lambda model: setattr(model.trainer_spec, "byte_fallback", True), "byte fallback"),
        (lambda model: setattr(model.trainer_spec, "unk_id", 0), r"unknown text id 0, but \[UNK\] is piece 3"),
        (lambda model: setattr(model.trainer_spec, "unk_id", 4000), "unknown text id 4000"),
        (rename(2, "</s>"), r"no piece \[SEP\]"),
        (lambda model: model.pieces.append(model.pieces[7]), "1 pieces twice"),
        (lambda model: model.pieces.insert(0, type(model.pieces[0])(piece="<s>")), r"unknown text id 3"),
    ],
)
def test_models_that_cannot_be_done_exactly(tmp_path: Path, change: Callable[[Any], None], says: str) -> None:
    path = changed_model(tmp_path / "spm.model", change)
    with pytest.raises(DataError, match=says):
        guide.load(path)


def test_mask_that_is_already_a_piece_is_not_added_again(tmp_path: Path) -> None:
    tokenizer = guide.load(changed_model(tmp_path / "spm.model", rename(399, "[MASK]")))
    assert tokenizer.encode("[MASK]", "").ids == [1, 399, 2, 2]
    assert guide.vocabulary_size(tokenizer) == 400


def test_padding_that_is_not_0_is_refused(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.pieces.insert(0, type(model.pieces[0])(piece="<s>"))
        model.trainer_spec.unk_id = 4

    with pytest.raises(DataError, match=r"\[PAD\] id 1, expected 0"):
        guide.load(changed_model(tmp_path / "spm.model", change))


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spm.model"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match=r"spm\.model is a Git LFS pointer"):
        guide.load(path)


@pytest.mark.parametrize("content", [b"", b"<html>no</html>"])
def test_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spm.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"\({len(content)} bytes\) is not a SentencePiece model"):
        guide.load(path)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"}'])
def test_json_that_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"is not a tokenizer\.json"):
        guide.load(tmp_path)


def test_json_of_another_family(tmp_path: Path) -> None:
    content = guide.load(SPM_MODEL).to_str().replace("[CLS]", "<s>").replace("[SEP]", "</s>")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"has no \[CLS\], \[SEP\]"):
        guide.load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"neither tokenizer\.json nor spm\.model"):
        guide.load(tmp_path)
    with pytest.raises(MissingError, match="invoke fetch"):
        guide.load(tmp_path / "spm.model")


@pytest.mark.parametrize(
    ("rules", "longest"),
    (
        (None, guide.MOST_CHARACTERS),
        (normalizers.NFKC(), guide.MOST_CHARACTERS // 18),
        (normalizers.Replace("a", "b" * 99), guide.MOST_CHARACTERS // 100),
        (normalizers.Sequence([normalizers.Replace("a", "a" * 9)] * 9), 0),
        (normalizers.Sequence([normalizers.Prepend("a" * 2**20), normalizers.Replace("a", "a" * 9)]), 0),
    ),
)
def test_rules_that_lengthen_a_text_bound_it(rules: normalizers.Normalizer | None, longest: int) -> None:
    greedy = Tokenizer(models.Unigram([("[UNK]", 0.0)], unk_id=0, byte_fallback=False))
    greedy.normalizer = rules
    assert guide.longest_row(greedy) == longest
    with pytest.raises(DataError, match=r"dev.tsv line 3 has .* characters"):
        guide.check_row("a" * longest, "a", longest, "dev.tsv line 3")
