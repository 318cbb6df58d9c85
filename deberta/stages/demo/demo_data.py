"""The demo profile's data: synthetic three-way NLI in GLUE's columns, with the vocabulary and model size to go with it.

A premise states facts (an entity's value of an attribute) amid text of its genre; the hypothesis affirms or denies one.
The label follows: entailment if the premise states the same, contradiction if it states another value, else neutral.
The hypothesis does not depend on the label, so it alone predicts nothing. Some training pairs are a single fact and a
claim: a model trained from scratch learns to compare on these first.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sentencepiece

from deberta.core import contract, files, mnli
from deberta.core.errors import run_stage
from deberta.core.progress import Progress
from deberta.stages import arguments
from deberta.stages.arguments import Argument, whole
from deberta.stages.demo import demo_text
from deberta.stages.demo.demo_text import ENTITIES, TEXT, Attribute, Scene

COLUMNS = mnli.DEV_NAMES[: mnli.TEST_COLUMNS]
DEV_COLUMNS = mnli.DEV_NAMES
TRAIN_COLUMNS = (*COLUMNS, "label1", "gold_label")
DEV_ROWS = 1200
BRIEF_SHARE = 0.3  # of the training pairs
PIECES = 700  # of the vocabulary; texts of so few words do not yield many more
VOCABULARY_ROWS = 30000  # pairs of all genres that the vocabulary is trained on

MODEL_CONFIG = TEXT.model_config

# Words of a pair by quantile. With [CLS] and two [SEP] these are the token counts of MNLI's matched pairs: median 38,
# p90 67, p95 77, p99 105, longest 253.
_LENGTHS = ((0.0, 11), (0.1, 21), (0.25, 28), (0.5, 38), (0.75, 52), (0.9, 67), (0.95, 77), (0.99, 105), (1.0, 240))
_OVERLONG_EVERY = 200  # one row in 200 is longer than 256 tokens; truncation keeps all of its facts

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
    """Random draws by `random.random()` alone: only its sequence for a seed is the same in every Python version."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def below(self, bound: int) -> int:
        return int(self._random() * bound)

    def pick(self, items: Sequence[_T]) -> _T:
        return items[self.below(len(items))]

    def pick_except(self, items: Sequence[_T], excluded: _T) -> _T:
        return self.pick([item for item in items if item != excluded])

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        remaining = list(items)
        return [remaining.pop(self.below(len(remaining))) for _ in items]

    def length(self) -> int:
        """Words of a pair, by linear interpolation between the quantiles."""
        quantile = self._random()
        for (low, shortest), (high, longest) in itertools.pairwise(_LENGTHS):
            if quantile <= high:
                part = (quantile - low) / (high - low)
                # Above the 99th percentile lengths thin out: cubing keeps most of them near it.
                return int(shortest + (longest - shortest) * (part**3 if high == 1.0 else part))
        raise AssertionError("quantiles end at 1")


def pairs(seed: str, rows: int, genres: Sequence[str], brief: float = 0.0) -> Iterator[Pair]:
    """`rows` pairs, labels in equal numbers (to within one), genres drawn uniformly.

    `brief` is the share of pairs that are a single fact and a claim, without text around them.
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
    attribute = dice.pick(TEXT.attributes)
    claim = Fact(dice.pick(ENTITIES), attribute, dice.pick(attribute.values))
    denied = dice.chance(0.12)
    lead = dice.pick(TEXT.leads) if words > 24 else ""
    hypothesis = lead + _phrase(dice, claim, genre, denied)
    room = words - _words(hypothesis)
    count = 1 + dice.below(max(1, min(4, room // 9)))
    facts = _facts(dice, claim, label, denied, count)
    premise = _premise(dice, [_phrase(dice, fact, genre, False) for fact in facts], genre, room)
    return Pair(genre, premise, _with_oddity(dice, _capital(hypothesis) + "."), label)


def _facts(dice: _Dice, claim: Fact, label: str, denied: bool, count: int) -> list[Fact]:
    """`count` facts by which the claim, or its denial, has the label `label`."""
    facts: list[Fact] = []
    if label != "neutral":
        same = (label == "entailment") != denied
        value = claim.value if same else dice.pick_except(claim.attribute.values, claim.value)
        facts.append(Fact(claim.entity, claim.attribute, value))
    subjects = {(claim.entity, claim.attribute.name)}
    while len(facts) < count:
        fact = _distractor(dice, claim)
        if (fact.entity, fact.attribute.name) not in subjects:
            subjects.add((fact.entity, fact.attribute.name))
            facts.append(fact)
    return dice.shuffled(facts)


def _distractor(dice: _Dice, claim: Fact) -> Fact:
    """A fact that says nothing about the claim, though it may share its entity, its attribute or even its value."""
    kind = dice.below(3)
    entity, attribute = dice.pick_except(ENTITIES, claim.entity), claim.attribute
    if kind == 1 and dice.chance(0.3):
        return Fact(entity, attribute, claim.value)
    if kind == 0:
        entity, attribute = claim.entity, dice.pick_except(TEXT.attributes, claim.attribute)
    elif kind == 2:
        attribute = dice.pick(TEXT.attributes)
    return Fact(entity, attribute, dice.pick(attribute.values))


def _phrase(dice: _Dice, fact: Fact, genre: str, denied: bool) -> str:
    rare = dice.chance(0.2 if genre in demo_text.MISMATCHED_GENRES else 0.1)
    affirmed = fact.attribute.affirmed[-2:] if rare else fact.attribute.affirmed[:-2]
    return dice.pick(fact.attribute.denied if denied else affirmed).format(e=fact.entity, v=fact.value)


def _premise(dice: _Dice, facts: Sequence[str], genre: str, words: int) -> str:
    scene = TEXT.scenes[genre]
    room = words - sum(_words(fact) for fact in facts)
    fillers: list[str] = []
    while room > 4:
        fillers.append(_filler(dice, scene))
        room -= _words(fillers[-1]) + 1
    # Truncation cuts the end of an overlong premise, so the facts are among the first 14 clauses.
    early = max(0, 14 - len(facts))
    clauses = dice.shuffled([*facts, *fillers[:early]]) + fillers[early:]
    text = clauses[0]
    for clause in clauses[1:]:
        joint = dice.pick(TEXT.odd_joints if dice.chance(0.06) else scene.joints)
        text += joint + (_capital(clause) if joint.strip().endswith((".", "…")) else clause)
    if dice.chance(0.06):
        # A double quote that is never closed: GLUE's files have them, as they know no quoting.
        text = text.replace(" the ", ' "the ', 1)
    return _with_oddity(dice, text if genre == "telephone" else _capital(text) + ".")


def _filler(dice: _Dice, scene: Scene) -> str:
    if dice.chance(0.15):
        return dice.pick(scene.sayings)
    subject, target = dice.pick(scene.nouns), dice.pick(scene.nouns)
    first, second = (f"{dice.pick(scene.adjectives)} " if dice.chance(0.4) else "" for _ in range(2))
    tail = f" {dice.pick(scene.tails)}" if dice.chance(0.3) else ""
    clause = f"{dice.pick(_ARTICLES)} {first}{subject} {dice.pick(scene.verbs)}"
    return f"{clause} {dice.pick(_ARTICLES)} {second}{target}{tail}"


def _with_oddity(dice: _Dice, text: str) -> str:
    """Now and then a text with an unusual ending, or with full-width letters; most texts as they are."""
    if not dice.chance(0.08):
        return text
    if dice.chance(0.15):
        return _full_width(text)
    return text.rstrip(".") + dice.pick(TEXT.odd_endings)


def _full_width(text: str) -> str:
    """The text with its last word in full-width forms, which nmt_nfkc normalisation maps back to ASCII."""
    head, space, last = text.rpartition(" ")
    return head + space + "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in last)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(text: str) -> int:
    """Roughly the tokens of a text: its words and punctuation marks."""
    return len(text.split()) + sum(text.count(mark) for mark in ".,;()-")


def cells(index: int, pair: Pair, dice: _Dice, train: bool) -> list[str]:
    """One row in GLUE's columns. The parses stay empty: nothing reads them."""
    row = [str(index), str(index), f"{index}{pair.label[0]}", pair.genre]
    row += ["", "", "", "", pair.premise, pair.hypothesis]
    if train:
        return [*row, pair.label, pair.label]
    # Up to two of five annotators disagree; the gold label is the majority's.
    votes = [pair.label] * 3 + [dice.pick(contract.LABELS) if dice.chance(0.2) else pair.label for _ in range(2)]
    return [*row, pair.label, *dice.shuffled(votes[1:]), pair.label]


def write_split(path: Path, seed: str, rows: int, genres: Sequence[str], train: bool) -> Counter[str]:
    """Write a tsv: a header and `rows` rows, tab separated, no quoting, \\n line ends, UTF-8; returns label counts."""
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


def train_vocabulary(texts: Sequence[str]) -> bytes:
    """A SentencePiece Unigram model in DeBERTa-v3's layout: [PAD], [CLS], [SEP], [UNK] are pieces 0 to 3.

    The texts come from an iterator, so that the model holds no path of this machine, and one thread keeps the order of
    the sums. Every word is also added once alone: SentencePiece considers a string only if different characters follow
    it, which is not so for many words of a small grammar.
    """
    words = sorted({word.strip('.,;()"') for text in texts for word in text.split()})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *words]),
        model_writer=model,
        vocab_size=PIECES,
        **TEXT.vocabulary,
    )
    return model.getvalue()


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "summary",
        data=arguments.file("folder for train.tsv and the dev files"),
        tokenizer=arguments.file("the spm.model to write"),
        config=arguments.file("the model_config.json to write"),
        train_rows=Argument("rows of train.tsv", whole(1, 10_000_000), required=True),
        seed=Argument("of all draws", whole(0), required=True),
    )
    seed, matched, mismatched = options.seed, demo_text.MATCHED_GENRES, demo_text.MISMATCHED_GENRES
    splits = {
        contract.TRAIN_FILE: (f"{seed} train", options.train_rows, matched),
        contract.DEV_FILES["match"]: (f"{seed} match", DEV_ROWS, matched),
        contract.DEV_FILES["mismatch"]: (f"{seed} mismatch", DEV_ROWS, mismatched),
    }
    counts = {}
    for name, (split_seed, rows, genres) in splits.items():
        labels = write_split(options.data / name, split_seed, rows, genres, train=name == contract.TRAIN_FILE)
        counts[name] = {"rows": rows, "labels": dict(sorted(labels.items()))}
        print(f"{options.data / name}: {rows} rows", flush=True)
    print("training the vocabulary", flush=True)
    drawn = pairs(f"{seed} vocabulary", VOCABULARY_ROWS, (*matched, *mismatched))  # none is a row of the files above
    vocabulary = train_vocabulary([text for pair in drawn for text in (pair.premise, pair.hypothesis)])
    with files.new_file(options.tokenizer) as temporary:
        temporary.write_bytes(vocabulary)
    files.write_text(options.config, json.dumps(MODEL_CONFIG, indent=2) + "\n")
    print(f"{options.tokenizer}: {PIECES} pieces, {len(vocabulary)} bytes; {options.config}", flush=True)
    summary = {"seed": seed, "files": counts, "pieces": PIECES, "tokenizer_bytes": len(vocabulary)}
    arguments.write_summary(options.summary, summary)


if __name__ == "__main__":
    sys.exit(run_stage(main))
