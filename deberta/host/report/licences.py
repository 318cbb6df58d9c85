"""Licences of the stages' packages, as the packages of requirements-stages.lock themselves declare them: licences.json.

Taken from each installed package's metadata, and checked against it by a test: nothing here is our own judgement of
a licence, and a package of another version than the one that was looked at has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import msgspec

# name: (version, licence). Expressions are of SPDX: the metadata's License-Expression, or a License that is one. Names
# are what else the metadata says, word for word: its classifier, or else its License. It need not tell a version.
_TABLES = msgspec.json.decode(Path(__file__).with_name("licences.json").read_bytes())
EXPRESSIONS, NAMES = _TABLES["expressions"], _TABLES["names"]


def declared(name: str, version: str) -> Optional[Tuple[str, bool]]:
    """A package's licence, and whether it is an SPDX expression; None where it is not known."""
    for table, is_expression in ((EXPRESSIONS, True), (NAMES, False)):
        known, licence = table.get(name, ("", ""))
        if known == version:
            return licence, is_expression
    return None
