"""int8 for the cpu backend: weights are quantized by output channel ahead of time, activations in groups at run time.

Weights of the layers, float32 [outputs, inputs] constants of matrix products, become int8 with one float32 scale per
output: scale = max |w| / 127, q = round(w / scale), symmetric, so that 0 stays 0. OpenVINO multiplies them by
activations that it quantizes itself, each row's in groups of GROUP inputs (its DYNAMIC_QUANTIZATION_GROUP_SIZE): what
else is in a batch changes no row's logits. Attention's products, tables, LayerNorm, GELU and Softmax stay float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deberta.core.errors import DataError

if TYPE_CHECKING:
    import openvino as ov

GROUP = 32
LEAST = 16  # inputs and outputs of a layer that is quantized: the classifier, of 3 outputs, stays as it is

Quantized = tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]


def quantize(weights: npt.NDArray[np.float32]) -> Quantized:
    """float32 [outputs, inputs] to int8 of the same shape and float32 scales [outputs, 1]."""
    largest = np.abs(weights).max(axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weights / scales).astype(np.int8), scales


def apply(model: ov.Model) -> int:
    """Quantize a model's layers in place; returns how many. Raises DataError if it has none."""
    import openvino as ov
    from openvino import opset13

    layers = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant = node.input_value(1).get_node()
        shape = list(constant.get_output_shape(0)) if constant.get_type_name() == "Constant" else []
        if len(shape) != 2 or min(shape) < LEAST:
            continue
        attributes = node.get_attributes()
        weights = constant.data if attributes["transpose_b"] else constant.data.T
        values, scales = quantize(np.ascontiguousarray(weights, np.float32))
        decoded = opset13.multiply(opset13.convert(opset13.constant(values), "f32"), opset13.constant(scales))
        product = opset13.matmul(node.input_value(0), decoded, attributes["transpose_a"], True)
        product.set_friendly_name(node.get_friendly_name())
        ov.utils.replace_node(node, product)
        layers += 1
    if not layers:
        raise DataError("the model has no layer to quantize, a product with a constant. Run: invoke export-onnx")
    return layers
