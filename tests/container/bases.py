"""The base images that `.ci/engine start` makes: Debian with its Python, since no image can be pulled in CI."""

from __future__ import annotations

# Python 3.11, as the export stage needs.
BOOKWORM = "deberta-ascend-test/bookworm"
# Python 3.9 with its shared library, as ATC needs.
BULLSEYE = "deberta-ascend-test/bullseye"
