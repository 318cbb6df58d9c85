"""The text of the demo's synthetic NLI, from demo_text.toml: facts and their phrasings, and each genre's other text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class Attribute(msgspec.Struct, frozen=True):
    """The subject of facts. An entity has one value of it, so a different value is a contradiction.

    `affirmed` and `denied` are phrasings with {e} and {v}; the last two of `affirmed` are rare in the matched genres.
    """

    name: str
    values: tuple[str, ...]
    affirmed: tuple[str, ...]
    denied: tuple[str, ...]


class Scene(msgspec.Struct, frozen=True):
    """A genre's text around the facts: clauses composed of its words, and its sayings; `joints` connect clauses."""

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    tails: tuple[str, ...]
    sayings: tuple[str, ...]
    joints: tuple[str, ...] = (". ", ". ", ". ", "; ", ", and ", ", while ")


class DemoText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file, with the config of the model that is trained on the text."""

    matched_genres: tuple[str, ...]
    mismatched_genres: tuple[str, ...]
    entities: tuple[str, ...]
    leads: tuple[str, ...]
    odd_joints: tuple[str, ...]
    odd_endings: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    scenes: dict[str, Scene]
    model_config: dict[str, object]
    vocabulary: dict[str, Any]  # SentencePiece's options


TEXT = msgspec.toml.decode(Path(__file__).with_name("demo_text.toml").read_bytes(), type=DemoText)
MATCHED_GENRES, MISMATCHED_GENRES, ENTITIES = TEXT.matched_genres, TEXT.mismatched_genres, TEXT.entities
