"""docs/security.md has the bounds that the code has."""

from __future__ import annotations

import re

from deberta.core import contract, errors, files, mnli, schema
from deberta.host.cli import settings_file
from deberta.host.cluster import shipping
from deberta.host.fetch import archives, download
from deberta.host.images import registry
from deberta.host.report import evidence, gates
from deberta.host.run import device_locks
from deberta.stages.data import tables
from deberta.stages.lint import graph
from deberta.stages.model import config, tokenizer
from deberta.stages.report import phrases
from deberta.stages.verify import sign
from tests.mnli_helpers import REPOSITORY

PAGE = (REPOSITORY / "docs/security.md").read_text(encoding="utf-8")
BOUNDS = {
    "a file that is read as a whole (JSON, logs, tokenizers, outputs)": files.LARGEST_TEXT,
    "lists and objects in each other in JSON": schema.DEEPEST_JSON,
    "digits of a whole number in text": len(str(contract.LARGEST_WHOLE)),
    "a key file": sign.LARGEST_KEY,
    "a settings file (`invoke.yaml`, `-f`); without anchors and aliases, no key twice": settings_file.LARGEST,
    "a table that `add-profile` converts, unpacked": tables.LARGEST,
    "a file that is hashed": files.LARGEST,
    "a line of a tsv": mnli.LONGEST_LINE,
    "bad rows of a tsv": mnli.MOST_BAD,
    "layers of a config": config.MOST_LAYERS,
    "any other size in a config": config.LARGEST,
    "a piece of a SentencePiece model": tokenizer.LONGEST_PIECE,
    "characters that a tokenizer's rules may make of a row": tokenizer.MOST_CHARACTERS,
    "an ONNX file": contract.ONNX_MAX_BYTES,
    "nodes of an ONNX file that is linted": graph.MOST_NODES,
    "entries of a zip": archives.LIMITS.entries,
    "bytes that a zip unpacks to": archives.LIMITS.total,
    f"compression of a member above {archives.LIMITS.ratio_from:,} bytes": archives.LIMITS.ratio,
    "bytes of a download whose server gives no length": download.SETTINGS.most_bytes,
    "redirects of a download": download.MOST_REDIRECTS,
    "silence of a server": int(download.SETTINGS.read),
    "time for 65,536 bytes of a download, or for an answer's headers": int(2 * download.SETTINGS.read),
    "time of an answer": int(download.SETTINGS.most_seconds),
    "a file or a folder of a tree that `verify --path` reads": evidence.LARGEST,
    "a gates file": gates.LARGEST,
    "what a registry answers to `images --lock`": registry.MAXIMUM_BYTES,
    "the time for that answer": int(registry.SECONDS),
    "the note in a device's lock": device_locks.LONGEST_NOTE,
    "characters of an error message": errors.LONGEST_MESSAGE,
    "characters of a text that a Chinese report translates by a phrase with placeholders": phrases.LONGEST,
    "a piece of a file that is sent to a cluster's host": shipping.PIECE,
    "models that a cluster's host keeps": shipping.MOST_CACHED,
    "texts of a report that such phrases are tried on": phrases.MOST,
}


def test_the_bounds_are_the_code_s() -> None:
    table = PAGE.partition("## Bounds")[2]
    rows = dict(re.findall(r"^\| (.+?) \| ([\d,]+)(?: \w+)? \| .+ \|$", table, re.MULTILINE))
    assert rows == {name: f"{value:,}" for name, value in BOUNDS.items()}


def test_readers_get_there() -> None:
    for name in ("README.md", "README.zh-CN.md", "docs/verify.md"):
        assert "security.md" in (REPOSITORY / name).read_text(encoding="utf-8"), name
