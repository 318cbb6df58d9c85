"""Licences of the stages' packages, as the packages of requirements-stages.lock themselves declare them.

Taken from each installed package's metadata, and checked against it by a test: nothing here is our own judgement of
a licence, and a package of another version than the one that was looked at has none.
"""

from __future__ import annotations

from typing import Optional, Tuple

# name: (version, licence). An SPDX expression: the metadata's License-Expression, or a License that is one.
EXPRESSIONS = {
    "annotated-doc": ("0.0.7", "MIT"),
    "annotated-types": ("0.8.0", "MIT"),
    "anyio": ("4.16.0", "MIT"),
    "attrs": ("26.1.0", "MIT"),
    "cffi": ("2.1.1", "MIT-0"),
    "click": ("8.5.1", "BSD-3-Clause"),
    "cryptography": ("50.0.2", "Apache-2.0 OR BSD-3-Clause"),
    "filelock": ("4.2.11", "MIT"),
    "fsspec": ("2026.9.0", "BSD-3-Clause"),
    "h11": ("0.16.0", "MIT"),
    "hf-xet": ("1.8.0", "Apache-2.0"),
    "httpcore2": ("2.16.2", "BSD-3-Clause"),
    "httpx2": ("2.16.2", "BSD-3-Clause"),
    "huggingface-hub": ("2.4.0", "Apache-2.0"),
    "idna": ("3.20", "BSD-3-Clause"),
    "jsonschema": ("4.26.0", "MIT"),
    "jsonschema-specifications": ("2025.9.1", "MIT"),
    "markupsafe": ("3.0.4", "BSD-3-Clause"),
    "ml-dtypes": ("0.6.0", "Apache-2.0"),
    "msgspec": ("0.20.0", "BSD-3-Clause"),
    "networkx": ("3.6.1", "BSD-3-Clause"),
    "numpy": ("2.4.6", "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0"),
    "onnx": ("1.23.2", "Apache-2.0"),
    "openvino": ("2026.4.1", "Apache-2.0"),
    "packaging": ("26.3", "Apache-2.0 OR BSD-2-Clause"),
    "pycparser": ("3.12", "BSD-3-Clause"),
    "pydantic": ("2.14.3", "MIT"),
    "pydantic-core": ("2.50.4", "MIT"),
    "pygments": ("2.21.0", "BSD-2-Clause"),
    "pyyaml": ("6.0.3", "MIT"),
    "referencing": ("0.37.0", "MIT"),
    "regex": ("2026.11.15", "Apache-2.0 AND CNRI-Python"),
    "rich": ("15.0.0", "MIT"),
    "rpds-py": ("2026.9.1", "MIT"),
    "sentencepiece": ("0.2.3", "Apache-2.0"),
    "setuptools": ("84.2.1", "MIT"),
    "torch": (
        "2.13.0+cpu",
        "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND BSL-1.0 AND MIT",
    ),
    "tqdm": ("4.70.1", "MPL-2.0 AND MIT"),
    "truststore": ("0.10.5", "MIT"),
    "typer": ("0.29.2", "MIT"),
    "typing-extensions": ("4.16.0", "PSF-2.0"),
    "typing-inspection": ("0.4.5", "MIT"),
}
# What else the metadata says, word for word: its classifier, or, without one, its License. It need not tell a version.
NAMES = {
    "flatbuffers": ("25.12.19", "Apache Software License"),
    "jinja2": ("3.1.6", "BSD License"),
    "markdown-it-py": ("4.3.0", "MIT License"),
    "mdurl": ("0.1.2", "MIT License"),
    "mpmath": ("1.3.0", "BSD License"),
    "onnxruntime": ("1.32.0", "MIT License"),
    "openvino-telemetry": ("2025.2.0", "Apache Software License"),
    "protobuf": ("7.36.2", "3-Clause BSD License"),
    "rfc8785": ("0.1.4", "Apache Software License"),
    "safetensors": ("0.8.0", "Apache Software License"),
    "scipy": ("1.17.1", "BSD License"),
    "shellingham": ("1.5.4", "ISC License (ISCL)"),
    "sympy": ("1.14.0", "BSD License"),
    "tokenizers": ("0.23.3", "Apache Software License"),
    "transformers": ("5.23.0", "Apache 2.0 License"),
}


def declared(name: str, version: str) -> Optional[Tuple[str, bool]]:
    """A package's licence, and whether it is an SPDX expression; None where it is not known."""
    for table, is_expression in ((EXPRESSIONS, True), (NAMES, False)):
        known, licence = table.get(name, ("", ""))
        if known == version:
            return licence, is_expression
    return None
