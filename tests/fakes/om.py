"""The file that atc's stand-in writes and msame's runs: the ONNX model with what the conversion fixed.

Layout: the magic line, the header's length (8 bytes, little endian), the header (JSON), the ONNX file as it was.
Header: `inputs` [[name, dtype, [dims]]], `gears` (of --dynamic_dims: for each gear every dimension of every input,
in order; the inputs' own dims are then the largest gear's), `output_type`, `soc_version`, `onnx_bytes`.
A real .om is a different thing; the two cannot be mistaken for each other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import List, Tuple

MAGIC = b"stand-in om, version 1\n"


@dataclass(frozen=True)
class Input:
    """`dtype`: numpy's name."""

    name: str
    dtype: str
    shape: Tuple[int, ...]


@dataclass(frozen=True)
class Om:
    """A compiled model. `gears`: flattened shapes of all inputs, empty for a static model."""

    inputs: Tuple[Input, ...]
    onnx: bytes
    gears: Tuple[Tuple[int, ...], ...] = ()
    output_type: str = "FP32"
    soc_version: str = "Ascend310P3"


def shapes_of(om: Om, gear: Tuple[int, ...]) -> List[Tuple[int, ...]]:
    """The inputs' shapes under one gear."""
    shapes = []
    at = 0
    for tensor in om.inputs:
        shapes.append(gear[at : at + len(tensor.shape)])
        at += len(tensor.shape)
    return shapes


def pack(om: Om) -> bytes:
    header = json.dumps(
        {
            "inputs": [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in om.inputs],
            "gears": [list(gear) for gear in om.gears],
            "output_type": om.output_type,
            "soc_version": om.soc_version,
            "onnx_bytes": len(om.onnx),
        }
    ).encode("utf-8")
    return b"".join((MAGIC, len(header).to_bytes(8, "little"), header, om.onnx))


def unpack(content: bytes) -> Om:
    """Raises ValueError for anything that is not a whole file of ours."""
    start = len(MAGIC) + 8
    if content[: len(MAGIC)] != MAGIC or len(content) < start:
        raise ValueError("not a stand-in's .om")
    end = start + int.from_bytes(content[len(MAGIC) : start], "little")
    header = json.loads(content[start:end].decode("utf-8"))
    if len(content) - end != header["onnx_bytes"]:
        raise ValueError("cut off")
    return Om(
        tuple(Input(name, dtype, tuple(dims)) for name, dtype, dims in header["inputs"]),
        content[end:],
        tuple(tuple(gear) for gear in header["gears"]),
        header["output_type"],
        header["soc_version"],
    )
