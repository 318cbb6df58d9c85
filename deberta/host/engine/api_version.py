"""The version of the engine's API that is spoken: one that the engine takes and that this program was written for."""

from __future__ import annotations

import re
from typing import Any, Mapping, Optional

from deberta.core import contract
from deberta.core.errors import MissingError

LEAST, LEAST_DOCKER = (1, 39), "18.09"
# The newest whose changes were read for what we send and use. A newer engine takes it too, unless its own least one is
# newer: then that is spoken.
NEWEST_KNOWN = (1, 52)


def pick(about: Mapping[str, Any], where: str) -> str:
    """The version to speak with an engine; `about`: its answer to /version. Raises MissingError for one too old."""
    newest, oldest = parse(about.get("ApiVersion")), parse(about.get("MinAPIVersion"))
    if newest is None:
        raise MissingError(
            f"what answers at {where} does not say which version of Docker's API it has. Correct DOCKER_HOST, or use "
            "--executor local"
        )
    if newest < LEAST:
        raise MissingError(
            f"the Docker engine at {where} is {about.get('Version', 'of an unknown version')} with API {text(newest)}; "
            f"the oldest that can be used is Docker {LEAST_DOCKER} with API {text(LEAST)}. Install a newer one, or use "
            "--executor local"
        )
    return text(max(min(newest, NEWEST_KNOWN), oldest or LEAST))


def parse(version: Any) -> Optional[tuple[int, int]]:
    """A version such as 1.39 as numbers, None if it is none."""
    match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", str(version))
    return (contract.whole(match[1]), contract.whole(match[2])) if match else None


def text(version: tuple[int, int]) -> str:
    return "{}.{}".format(*version)
