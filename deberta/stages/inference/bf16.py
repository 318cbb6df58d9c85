"""bfloat16 for the cpu backend: matrix products of bfloat16 values, added up in float32 by the CPU's own instructions.

The weights stay float32 in the file; OpenVINO rounds them and what goes from node to node to bfloat16 (8 bits of
precision, float32's range). Its kernels of Softmax, LayerNorm and GELU compute in float32 from bfloat16 inputs to
bfloat16 outputs, and what follows the last large product is float32 altogether: `apply` puts the classifier there. The
tables of relative positions are bfloat16, since float32 for them cost more than 3 % of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deberta.core.contract import LABELS
from deberta.core.errors import DataError

if TYPE_CHECKING:
    import openvino as ov


def apply(model: ov.Model) -> None:
    """Write the classifier as sums of products, in place: of a matrix product OpenVINO would round the inputs.

    Raises DataError for a model whose last matrix product is not the classifier.
    """
    import openvino as ov
    from openvino import opset13

    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    weights = products[-1].input_value(1).get_node() if products else None
    if weights is None or weights.get_type_name() != "Constant":
        raise DataError("the model does not end in a classifier, a product with a constant. Run: invoke export-onnx")
    attributes = products[-1].get_attributes()
    rows = np.array(weights.data if attributes["transpose_b"] else weights.data.T, np.float32)
    if rows.ndim != 2 or len(rows) != len(LABELS) or attributes["transpose_a"]:
        raise DataError(f"the model's last product has weights {list(rows.shape)}, not {len(LABELS)} rows of them")
    pooled, axis = products[-1].input_value(0), np.array([1], np.int32)
    # One sum for each label: OpenVINO 2026.4 gives wrong sums over [batch, labels, hidden] for more rows than one.
    columns = [
        opset13.reduce_sum(
            opset13.multiply(pooled, opset13.constant(row[None])), opset13.constant(axis), keep_dims=True
        )
        for row in rows
    ]
    logits = opset13.concat(columns, 1)
    logits.set_friendly_name(products[-1].get_friendly_name())
    ov.utils.replace_node(products[-1], logits)
