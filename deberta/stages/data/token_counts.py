"""How many rows of MNLI's tsv have how many tokens, as a JSON file: what length buckets are chosen by."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from deberta.core import files
from deberta.core.errors import run_stage
from deberta.stages import arguments
from deberta.stages.data.encoding import EncodedRows


def count(encoded: EncodedRows) -> dict[str, Any]:
    """Tokens as `preprocess` would write them, cut at the contract's length. Raises DataError."""
    for _ in encoded.chunks(f"token-counts {encoded.data.name}"):
        pass  # `encoded.counts` has the numbers
    lengths = encoded.counts.lengths
    return {
        "rows": encoded.rows,
        "limit": encoded.limit,
        "tokens": {str(tokens): int(lengths[tokens]) for tokens in np.flatnonzero(lengths).tolist()},
    }


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(argv, __doc__, "data tokenizer output limit rows summary")
    counted = count(EncodedRows(options.data, options.tokenizer, options.limit, options.rows))
    files.write_text(options.output, json.dumps(counted, indent=1) + "\n")
    print(f"{counted['rows']} rows counted: {options.output}")
    arguments.write_summary(options.summary, {"rows": counted["rows"]})


if __name__ == "__main__":
    sys.exit(run_stage(main))
