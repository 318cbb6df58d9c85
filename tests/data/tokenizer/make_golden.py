"""Make spm.model and golden.json of this folder again. Two steps, because the reference needs packages of 2023:

    python make_golden.py train                  with Python 3.11, sentencepiece 0.2
    python make_golden.py golden                 with Python 3.10, transformers 4.30.2, tokenizers 0.13.3, protobuf 3.20

The second one does what the guide's script does: AutoTokenizer on a folder laid out like microsoft/deberta-v3-base,
then tokenizer(pairs, padding=True, truncation=True, max_length=256).
"""

import contextlib
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent.resolve()
SYLLABLES = [
    *("ba", "ber", "con", "der", "di", "er", "fo", "gra", "ing", "is", "ka", "li", "lo", "men", "mi", "na", "or"),
    *("pre", "qui", "re", "sta", "te", "ti", "un", "ver", "wa", "xy", "zo"),
]
WHO = ["the farmer", "a lawyer", "my sister", "the old captain", "every student", "no one", "the committee", "Anna"]
DOES = ["sold", "bought", "painted", "forgot", "repaired", "praised", "didn't see", "will never understand"]
WHAT = ["the boat", "three red houses", "a letter", "this strange rule", "her own garden", "the report, again"]
WHEN = ["yesterday", "in 1998", "before the storm", "at 7.30 p.m.", "(as usual)", '"on purpose"', "; so they say", "!?"]

TEXTS = [
    "",
    "   ",
    " leading",
    "trailing  ",
    "double  blanks   here",
    "the boat… again …",
    "ｆｕｌｌｗｉｄｔｈ ＡＢＣ１２３",
    "zero\u200bwidth\u200d joiner\ufeff",
    "soft\u00adhyphen",
    "emoji 😀👩\u200d👧 too",
    "tab\tinside",
    "no-break\u00a0blank and ideographic\u3000blank",
    "a [SEP] b",
    "[SEP]",
    " [CLS] [MASK]x [PAD]",
    "[UNK] unknown",
    "[sep] [SEP",
    "▁a ▁▁ b▁",
    "e\u0301 combining, ﬁ ligature ½ ² ™",
    "line\u2028paragraph\u2029 next\u0085line",
    "control \x01\x0b\x7f",
    "中文 日本語 العربية ΑΒΓ ß",
    "''quoted'' ``both ways`` \"unbalanced",
    "a" * 300,
]


def sentences(count: int, seed: int) -> list[str]:
    """Phrases with a made-up word in each, so that words are cut into many different pieces."""
    chance = random.Random(seed)
    made_up = ["".join(chance.choice(SYLLABLES) for _ in range(chance.randint(1, 4))) for _ in range(count)]
    return [
        " ".join([chance.choice(WHO), chance.choice(DOES), chance.choice(WHAT), word, chance.choice(WHEN)])
        for word in made_up
    ]


def long_text(words: int, seed: int) -> str:
    return " ".join(" ".join(sentences(80, seed)).split()[:words])


def pairs() -> list[tuple[str, str]]:
    """Odd texts on either side, plain pairs, and long ones that are cut on the left, on the right, and on both."""
    result = [(text, "the boat") for text in TEXTS] + [("a letter", text) for text in TEXTS]
    result += list(zip(sentences(20, 1), sentences(20, 2), strict=False))
    for left, right in [(400, 400), (400, 5), (5, 400), (400, 0), (0, 400), (150, 80), (90, 150), (110, 111)]:
        result.append((long_text(left, left), long_text(right, right + 1)))
    return result


def train() -> None:
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # the model keeps the names it was given
        text = Path("text.txt")
        text.write_text("\n".join(sentences(1500, 0)) + "\n", encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix="spm",
            model_type="unigram",
            vocab_size=400,
            normalization_rule_name="nmt_nfkc",
            num_threads=1,
            minloglevel=2,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="[PAD]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            unk_piece="[UNK]",
        )
        shutil.copy("spm.model", HERE / "spm.model")


def golden() -> None:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / "spm.model", folder)
        Path(folder, "config.json").write_text('{"model_type": "deberta-v2"}')
        Path(folder, "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(pairs(), padding=True, truncation=True, max_length=256)
    lengths = [sum(mask) for mask in encoded["attention_mask"]]
    lines = [
        json.dumps({"premise": a, "hypothesis": b, "ids": ids[:length]})
        for (a, b), ids, length in zip(pairs(), encoded["input_ids"], lengths, strict=True)
    ]
    head = json.dumps({"made_with": f"transformers {transformers.__version__}, {type(tokenizer).__name__}"})
    body = ",\n  ".join(lines)
    (HERE / "golden.json").write_text(f'{head[:-1]}, "rows": [\n  {body}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    {"train": train, "golden": golden}[sys.argv[1]]()
