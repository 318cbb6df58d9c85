"""bench: Hugging Face's own export of a model folder, by optimum-onnx, which needs an older transformers than ours.

Run by the Python of the environment that requirements-bench.lock makes, where nothing else of ours is imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

from optimum.exporters.onnx import main_export  # type: ignore[import-not-found]
from optimum.intel import OVModelForSequenceClassification  # type: ignore[import-not-found]

PACKAGES = ("optimum-onnx", "optimum-intel", "optimum", "transformers", "torch", "onnx")


def main(source: str, output: str) -> None:
    """Export to OUTPUT/model.onnx, as `optimum-cli export onnx` does without options, and say with what.

    Then to OUTPUT/openvino_model.xml, as optimum-intel does when a model is loaded with `export=True`.
    """
    main_export(source, output=output, task="text-classification", do_validation=False, local_files_only=True)
    OVModelForSequenceClassification.from_pretrained(
        source, export=True, compile=False, load_in_8bit=False, local_files_only=True
    ).save_pretrained(output)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    Path(output, "versions.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
