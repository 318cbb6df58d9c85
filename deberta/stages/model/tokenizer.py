"""The guide's tokenizer: the *fast* one that transformers 4 built from DeBERTa's spm.model, without transformers.

transformers 5's own class gives different ids, so only `tokenizers` is used; the committed golden ids of transformers
4.30.2 (tests/data/tokenizer) prove that this tokenizer is the same. Its parts are those of the DebertaV2Converter:

- Unigram over the model's pieces and scores, no byte fallback, the model's own unknown id;
- special tokens [PAD] 0, [CLS], [SEP], [UNK] from the pieces; [MASK] is appended when it is not a piece (128000 with
  microsoft/deberta-v3-base). Where a text contains their names, these are matched as specials, and the text between
  them is normalised piece by piece;
- Strip, the model's precompiled character map if it has one, runs of blanks to one blank; Metaspace that always
  prepends a blank; [CLS] A [SEP] B [SEP].
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from deberta.core import files, schema
from deberta.core.errors import DataError, MissingError
from deberta.stages.model import tokenizer_rules

LONGEST_PIECE = 1024  # characters
MOST_CHARACTERS = 4 * 2**20  # that the rules may make of a row
REQUIRED = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
SPECIAL = (*REQUIRED, "[MASK]")
PAD_ID = 0  # the padding of the bins
TOKENIZER_FILE, MODEL_FILE = "tokenizer.json", "spm.model"


def source(path: Path) -> Path:
    """The file that `load(path)` reads: `path` itself, or a folder's tokenizer.json, else its spm.model.

    Raises MissingError.
    """
    if not path.exists():
        raise MissingError(f"{path} is missing. Run: invoke fetch")
    for file in (path, path / TOKENIZER_FILE, path / MODEL_FILE):
        if file.is_file():
            return file
    raise MissingError(f"{path} holds neither {TOKENIZER_FILE} nor {MODEL_FILE}. Run: invoke fetch")


def load(path: Path, max_length: int = 0) -> Tokenizer:
    """The guide's tokenizer from a SentencePiece Unigram model, a tokenizer.json, or a folder that holds one of them.

    A folder's spm.model is read with its tokenizer_config.json; nothing beside a file is read. Pairs are encoded as
    [CLS] A [SEP] B [SEP], not padded, and truncated to `max_length` tokens, specials included, 0 for no limit. Raises
    MissingError or DataError.
    """
    file = source(path)
    if file.suffix == ".json":
        tokenizer = _from_json(file)
    else:
        tokenizer = _from_sentencepiece(file, *(_folder_options(path) if path.is_dir() else (False, False)))
    lacking = [token for token in REQUIRED if tokenizer.token_to_id(token) is None]
    if lacking:
        raise DataError(f"{file} has no {', '.join(lacking)}: it is not a DeBERTa v2 or v3 tokenizer")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if (pad := tokenizer.token_to_id("[PAD]")) != PAD_ID:
        raise DataError(f"{file} gives [PAD] id {pad}, expected {PAD_ID}: the bins are filled with zeros")
    if (tokens := tokenizer.encode("", "").tokens) != ["[CLS]", "[SEP]", "[SEP]"]:
        raise DataError(f"{file} encodes an empty pair as {tokens}, expected [CLS] [SEP] [SEP]")
    if max_length:  # from the end of the longer text, as truncation=True does
        tokenizer.enable_truncation(max_length, stride=0, strategy="longest_first", direction="right")
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The largest possible id plus 1, [MASK] included."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def has_character_map(tokenizer: Tokenizer) -> bool:
    """Whether a precompiled character map is applied, as in every published DeBERTa.

    A tokenizer.json written by transformers 5 lacks it: an ellipsis, for example, becomes [UNK].
    """
    return tokenizer.normalizer is not None and b"Precompiled" in tokenizer.normalizer.__getstate__()


def longest_row(tokenizer: Tokenizer) -> int:
    """Characters of a row's two texts, beyond which the rules could make more than MOST_CHARACTERS of them."""
    rules = schema.decode(tokenizer.normalizer.__getstate__(), dict[str, Any]) if tokenizer.normalizer else {}
    return MOST_CHARACTERS // tokenizer_rules.growth(rules)


def check_row(premise: str, hypothesis: str, longest: int, place: str) -> None:
    """Raise DataError for texts of more than `longest` characters; see `longest_row`."""
    if (characters := len(premise) + len(hypothesis)) > longest:
        raise DataError(f"{place} has {characters} characters, and the tokenizer's rules allow {longest} at most")


def _from_json(file: Path) -> Tokenizer:
    try:
        content = files.read_bytes(file)
    except files.UnfitFile as error:
        raise DataError(f"{file} {error}") from None
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # tokenizers raises no narrower class for an unreadable file
        if form := files.form_of(content, len(content)):
            raise DataError(f"{file} {form}") from None
        raise DataError(f"{file} is not a tokenizer.json of Hugging Face tokenizers: {str(error)[:200]}") from error
    document = schema.read(file, dict[str, Any], "Fetch it again")
    if problem := tokenizer_rules.problem(document):
        raise DataError(f"{file} {problem}. Fetch it again")
    for entry in document.get("added_tokens") or []:
        if (number := tokenizer.token_to_id(entry["content"])) != entry["id"]:
            raise DataError(f"{file} gives {entry['content']} id {entry['id']}, and its vocabulary gives it {number}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _from_sentencepiece(file: Path, lower_case: bool, split_by_punctuation: bool) -> Tokenizer:
    model = _read_model(file)
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=model.trainer_spec.unk_id, byte_fallback=False))
    character_map = model.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        ([normalizers.Lowercase()] if lower_case else [])
        + [normalizers.Strip()]
        + ([normalizers.Precompiled(character_map)] if character_map else [])
        + [normalizers.Replace(Regex(" {2,}"), " ")]
    )
    metaspace = [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    punctuation = [pre_tokenizers.Punctuation(behavior="isolated")] if split_by_punctuation else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(punctuation + metaspace)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _folder_options(folder: Path) -> tuple[bool, bool]:
    """do_lower_case and split_by_punct of a folder's tokenizer_config.json; off in all published v2 and v3 models."""
    config = folder / "tokenizer_config.json"
    settings = schema.read(config, dict[str, Any], "Fetch it again") if config.is_file() else {}
    return bool(settings.get("do_lower_case", False)), bool(settings.get("split_by_punct", False))


def _read_model(file: Path) -> sentencepiece_model_pb2.ModelProto:  # type: ignore[name-defined]
    """Parse a SentencePiece model and check that the fast tokenizer supports it. Raises DataError."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        content = files.read_bytes(file)
    except files.UnfitFile as error:
        raise DataError(f"{file} {error}") from None
    try:
        model.ParseFromString(content)
    except DecodeError:
        model.Clear()
    if not model.pieces:
        form = files.form_of(content, len(content)) or f"starts with {content[:24]!r}"
        raise DataError(
            f"{file} ({len(content)} bytes) is not a SentencePiece model: it {form}. Move it away and run: invoke fetch"
        )
    spec = model.trainer_spec
    if spec.model_type != spec.UNIGRAM:
        kind = spec.ModelType.Name(spec.model_type)
        raise DataError(f"{file} is a SentencePiece model of type {kind}, expected UNIGRAM")
    if spec.byte_fallback:
        raise DataError(f"{file} uses byte fallback, which the guide's tokenizer does not have")
    names = [piece.piece for piece in model.pieces]
    if not all(isinstance(name, str) for name in names):  # protobuf's bytes where it could not decode
        raise DataError(f"{file} has pieces that are not UTF-8: it is damaged. Move it away and run: invoke fetch")
    if not all(math.isfinite(piece.score) for piece in model.pieces):
        raise DataError(f"{file} has a piece whose score is no finite number: it is damaged. Fetch it again")
    character_map = model.normalizer_spec.precompiled_charsmap
    if character_map and (problem := tokenizer_rules.map_problem(character_map)):
        raise DataError(f"{file} {problem}. Fetch it again")
    if max(map(len, names)) > LONGEST_PIECE:  # a long one takes gigabytes to load
        raise DataError(f"{file} has a piece of more than {LONGEST_PIECE} characters: not DeBERTa v2's or v3's")
    lacking = [token for token in REQUIRED if token not in names]
    if lacking:
        first = ", ".join(names[:4])
        raise DataError(f"{file} has no piece {', '.join(lacking)} (it starts with {first}): not DeBERTa v2's or v3's")
    if len(set(names)) != len(names):
        raise DataError(f"{file} names {len(names) - len(set(names))} pieces twice")
    if not 0 <= spec.unk_id < len(names) or names[spec.unk_id] != "[UNK]":
        raise DataError(f"{file} gives unknown text id {spec.unk_id}, but [UNK] is piece {names.index('[UNK]')}")
    return model
