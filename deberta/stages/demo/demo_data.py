"""The demo profile's data: synthetic three-way NLI in GLUE's columns, with the vocabulary and model size to go with it.

A premise states facts (an entity's value of an attribute) amid text of its genre; the hypothesis affirms or denies one.
Gold labels follow from the facts: stated so is entailment, stated otherwise is contradiction, not stated is neutral.
The hypothesis is drawn before the label and independently of it, so it alone tells nothing. Some of the training pairs
are one fact each, since a model that is trained from scratch learns to compare there first.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sentencepiece

from deberta.core import contract, files
from deberta.core.errors import run_stage
from deberta.core.progress import Progress
from deberta.stages.demo import demo_text
from deberta.stages.demo.demo_text import ATTRIBUTES, ENTITIES, Attribute, Scene

COLUMNS = (
    "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
    "sentence2_parse", "sentence1", "sentence2",
)  # fmt: skip
DEV_COLUMNS = (*COLUMNS, "label1", "label2", "label3", "label4", "label5", "gold_label")
TRAIN_COLUMNS = (*COLUMNS, "label1", "gold_label")
DEV_ROWS = 1200
BRIEF_SHARE = 0.3  # of the training pairs
PIECES = 700  # of the vocabulary; a text of so few words does not give many more
VOCABULARY_ROWS = 30000  # pairs of all genres that the vocabulary is learnt from

# DeBERTa-v3's architecture in Microsoft's layout, small. vocab_size: the pieces, [MASK] behind them, rounded up.
MODEL_CONFIG: dict[str, object] = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 96,
    "initializer_range": 0.1,
    "intermediate_size": 384,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "padding_idx": 0,
    "pooling": {"dropout": 0, "hidden_act": "gelu"},
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 256,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
    "vocab_size": 704,
}

# Words of a pair by quantile: with [CLS] and two [SEP] it comes to the token counts of MNLI's matched pairs
# (median 38, p90 67, p95 77, p99 105, longest 253).
_LENGTHS = ((0.0, 11), (0.1, 21), (0.25, 28), (0.5, 38), (0.75, 52), (0.9, 67), (0.95, 77), (0.99, 105), (1.0, 240))
_OVERLONG_EVERY = 200  # one row in so many is longer than 256 tokens; its facts are all in the part that is kept

_ARTICLES = ("the", "the", "the", "this", "that", "every", "another")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fact:
    entity: str
    attribute: Attribute
    value: str


@dataclass(frozen=True)
class Pair:
    genre: str
    premise: str
    hypothesis: str
    label: str


class _Dice:
    """Draws from `random.random()` alone: Python promises that sequence for a seed, not those of choice or shuffle."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def below(self, bound: int) -> int:
        return int(self._random() * bound)

    def pick(self, items: Sequence[_T]) -> _T:
        return items[self.below(len(items))]

    def pick_other(self, items: Sequence[_T], taken: Sequence[_T]) -> _T:
        return self.pick([item for item in items if item not in taken])

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(len(rest))]

    def length(self) -> int:
        """Words of a pair, by linear interpolation between the quantiles."""
        at = self._random()
        for (low, shortest), (high, longest) in itertools.pairwise(_LENGTHS):
            if at <= high:
                part = (at - low) / (high - low)
                # The last stretch is thin at its end: cubing keeps most of it near the 99th percentile.
                return int(shortest + (longest - shortest) * (part**3 if high == 1.0 else part))
        raise AssertionError("quantiles end at 1")


def pairs(seed: str, rows: int, genres: Sequence[str], brief: float = 0.0) -> Iterator[Pair]:
    """`rows` pairs, the labels in equal numbers (to within one), the genres drawn evenly.

    `brief` is the share of pairs that are one fact and a claim, without text around them.
    """
    dice = _Dice(seed)
    labels: list[str] = []
    for row in range(rows):
        labels = labels or dice.shuffled(contract.LABELS)
        words = dice.length()
        if row % _OVERLONG_EVERY == _OVERLONG_EVERY // 2:
            words = 290 + dice.below(120)
        elif dice.chance(brief):
            words = 10
        yield _pair(dice, labels.pop(), dice.pick(genres), words)


def _pair(dice: _Dice, label: str, genre: str, words: int) -> Pair:
    attribute = dice.pick(ATTRIBUTES)
    claim = Fact(dice.pick(ENTITIES), attribute, dice.pick(attribute.values))
    denied = dice.chance(0.12)
    hypothesis = _lead(dice, words) + _phrase(dice, claim, genre, denied)
    room = words - _words(hypothesis)
    count = 1 + dice.below(max(1, min(4, room // 9)))
    facts = _facts(dice, claim, label, denied, count)
    premise = _premise(dice, [_phrase(dice, fact, genre, False) for fact in facts], genre, room)
    return Pair(genre, premise, _odd(dice, _sentence(hypothesis, "."), 0.08), label)


def _facts(dice: _Dice, claim: Fact, label: str, denied: bool, count: int) -> list[Fact]:
    """`count` facts that give `label` to the claim (or to its denial)."""
    facts: list[Fact] = []
    if label != "neutral":
        same = (label == "entailment") != denied
        value = claim.value if same else dice.pick_other(claim.attribute.values, [claim.value])
        facts.append(Fact(claim.entity, claim.attribute, value))
    taken = [(claim.entity, claim.attribute.name)]
    while len(facts) < count:
        fact = _distractor(dice, claim)
        if (fact.entity, fact.attribute.name) not in taken:
            taken.append((fact.entity, fact.attribute.name))
            facts.append(fact)
    return dice.shuffled(facts)


def _distractor(dice: _Dice, claim: Fact) -> Fact:
    """A fact that does not settle the claim, often near it: its entity, or its attribute, or its very value."""
    near = dice.below(3)
    other = dice.pick_other(ENTITIES, [claim.entity])
    if near == 0:
        attribute = dice.pick_other(ATTRIBUTES, [claim.attribute])
        return Fact(claim.entity, attribute, dice.pick(attribute.values))
    if near == 1:
        return Fact(other, claim.attribute, claim.value if dice.chance(0.3) else dice.pick(claim.attribute.values))
    attribute = dice.pick(ATTRIBUTES)
    return Fact(other, attribute, dice.pick(attribute.values))


def _phrase(dice: _Dice, fact: Fact, genre: str, denied: bool) -> str:
    rare = 0.2 if genre in demo_text.MISMATCHED_GENRES else 0.1
    affirmed = fact.attribute.affirmed
    chosen = affirmed[-2:] if dice.chance(rare) else affirmed[:-2]
    return dice.pick(fact.attribute.denied if denied else chosen).format(e=fact.entity, v=fact.value)


def _lead(dice: _Dice, words: int) -> str:
    return dice.pick(demo_text.LEADS) if words > 24 else ""


def _premise(dice: _Dice, facts: Sequence[str], genre: str, words: int) -> str:
    scene = demo_text.SCENES[genre]
    room = words - sum(_words(fact) for fact in facts)
    extra: list[str] = []
    while room > 4:
        extra.append(_filler(dice, scene))
        room -= _words(extra[-1]) + 1
    # Truncation cuts the premise's end: of an overlong one, what comes after the first clauses is filler.
    early = max(0, 14 - len(facts))
    clauses = dice.shuffled([*facts, *extra[:early]]) + extra[early:]
    text = clauses[0]
    for clause in clauses[1:]:
        joint = dice.pick(demo_text.ODD_JOINTS if dice.chance(0.06) else scene.joints)
        text += joint + (_capital(clause) if joint.strip().endswith((".", "…")) else clause)
    if dice.chance(0.06):
        # One quote that is never closed: legal in GLUE's files, which know no quoting.
        text = text.replace(" the ", ' "the ', 1)
    return _odd(dice, text if genre == "telephone" else _sentence(text, "."), 0.08)


def _filler(dice: _Dice, scene: Scene) -> str:
    if dice.chance(0.15):
        return dice.pick(scene.sayings)
    subject, other = dice.pick(scene.nouns), dice.pick(scene.nouns)
    first, second = (f"{dice.pick(scene.adjectives)} " if dice.chance(0.4) else "" for _ in range(2))
    tail = f" {dice.pick(scene.tails)}" if dice.chance(0.3) else ""
    return (
        f"{dice.pick(_ARTICLES)} {first}{subject} {dice.pick(scene.verbs)} {dice.pick(_ARTICLES)} {second}{other}{tail}"
    )


def _odd(dice: _Dice, text: str, probability: float) -> str:
    if not dice.chance(probability):
        return text
    if dice.chance(0.15):
        return _full_width(text)
    return text.rstrip(".") + dice.pick(demo_text.ODD_ENDINGS)


def _full_width(text: str) -> str:
    """Full-width forms of the last word, which the vocabulary's nmt_nfkc normalisation takes back to ASCII."""
    head, space, last = text.rpartition(" ")
    return head + space + "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in last)


def _sentence(text: str, end: str) -> str:
    return _capital(text) + end


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(text: str) -> int:
    """About the tokens of a text: its words and the marks that stand at their ends."""
    return len(text.split()) + sum(text.count(mark) for mark in ".,;()-")


def cells(index: int, pair: Pair, dice: _Dice, train: bool) -> list[str]:
    """One row in GLUE's columns. The parses stay empty: nothing reads them."""
    prompt = str(index)
    row = [str(index), prompt, f"{prompt}{pair.label[0]}", pair.genre, "", "", "", "", pair.premise, pair.hypothesis]
    if train:
        return [*row, pair.label, pair.label]
    # Up to two of five annotators disagree; the gold label is what most say.
    votes = [pair.label] * 3 + [dice.pick(contract.LABELS) if dice.chance(0.2) else pair.label for _ in range(2)]
    return [*row, pair.label, *dice.shuffled(votes[1:]), pair.label]


def write_split(path: Path, seed: str, rows: int, genres: Sequence[str], train: bool) -> Counter[str]:
    """Write one tsv: a header, then `rows` rows; tab separated, no quoting, \\n line ends, UTF-8; count its labels."""
    dice = _Dice(f"{seed} votes")
    progress = Progress(f"writing {path.name}", rows, "rows")
    labels: Counter[str] = Counter()
    with files.new_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(TRAIN_COLUMNS if train else DEV_COLUMNS) + "\n")
        for index, pair in enumerate(pairs(seed, rows, genres, BRIEF_SHARE if train else 0.0)):
            file.write("\t".join(cells(index, pair, dice, train)) + "\n")
            labels[pair.label] += 1
            progress.update(index + 1)
    return labels


def train_vocabulary(texts: Sequence[str], pieces: int = PIECES) -> bytes:
    """A SentencePiece Unigram model in DeBERTa-v3's layout: [PAD], [CLS], [SEP], [UNK] are pieces 0 to 3.

    The texts come from an iterator, so that no path of this machine gets into the model, and one thread keeps the
    order of the sums. Every word is also given once alone: a string becomes a candidate only where different
    characters follow it, which in the texts of a small grammar is not true of many words.
    """
    words = sorted({word.strip('.,;()"') for text in texts for word in text.split()})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *words]),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        character_coverage=0.9999,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    return model.getvalue()


def vocabulary_texts(seed: int) -> list[str]:
    """Text of all genres, as if both dev sets' kinds had been read, but no row of theirs."""
    genres = (*demo_text.MATCHED_GENRES, *demo_text.MISMATCHED_GENRES)
    drawn = pairs(f"{seed} vocabulary", VOCABULARY_ROWS, genres)
    return [text for pair in drawn for text in (pair.premise, pair.hypothesis)]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.demo.demo_data", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for train.tsv and the dev files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the spm.model to write")
    parser.add_argument("--config", type=Path, required=True, help="the model_config.json to write")
    parser.add_argument("--train-rows", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--summary", type=Path, required=True, help="JSON file for what was counted")
    options = parser.parse_args(argv)
    train_rows = contract.parse_integer("--train-rows", options.train_rows, 0, 1, 10_000_000)
    seed = contract.parse_integer("--seed", options.seed, 0, 0, 2**31 - 1)
    matched, mismatched = demo_text.MATCHED_GENRES, demo_text.MISMATCHED_GENRES
    splits = {
        "train.tsv": (f"{seed} train", train_rows, matched),
        contract.DEV_FILES["match"]: (f"{seed} match", DEV_ROWS, matched),
        contract.DEV_FILES["mismatch"]: (f"{seed} mismatch", DEV_ROWS, mismatched),
    }
    counts = {}
    for name, (split_seed, rows, genres) in splits.items():
        labels = write_split(options.data / name, split_seed, rows, genres, train=name == "train.tsv")
        counts[name] = {"rows": rows, "labels": dict(sorted(labels.items()))}
        print(f"{options.data / name}: {rows} rows", flush=True)
    print("training the vocabulary", flush=True)
    vocabulary = train_vocabulary(vocabulary_texts(seed))
    with files.new_file(options.tokenizer) as temporary:
        temporary.write_bytes(vocabulary)
    files.write_text(options.config, json.dumps(MODEL_CONFIG, indent=2) + "\n")
    print(f"{options.tokenizer}: {PIECES} pieces, {len(vocabulary)} bytes; {options.config}", flush=True)
    summary = {
        "seed": seed,
        "files": counts,
        "pieces": PIECES,
        "tokenizer_bytes": len(vocabulary),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    files.write_text(options.summary, json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
