"""Relative scores in blocks of queries, for the cpu backend's models of one length.

`deberta.stages.model.deberta.shift` takes scores by distance, [B, H, L, 2L], of which each row uses L columns, to
scores by position, [B, H, L, L]. The rows of a block of R queries use R + L - 1 columns between them, so that with a
table of its own for each block the product has R + L columns and not 2L: at L = 256 and R = 64 it is 62 % of the work,
and so are the slices that shift it. Every product and sum that is left is the one that it was, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino as ov

ROWS = 64  # of a block; 32 and 128 were no faster at 256 tokens, and smaller blocks take more memory for their tables
_SHIFT = ("Reshape", "Slice", "Reshape", "Slice")  # what follows the product with a table


def apply(model: ov.Model, length: int) -> int:
    """Rewrite a model's shifts in place, [B, H, length, 2 * length] to [B, H, length, length]; returns how many.

    None of a length that is not at least two blocks.
    """
    import openvino as ov

    if length % ROWS or length < 2 * ROWS:
        return 0
    rewritten = 0
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul" or product.input_value(1).get_node().get_type_name() != "Constant":
            continue
        table = product.input_value(1).get_node().data
        shifted = _end_of_shift(product)
        if shifted is None or table.ndim != 4 or table.shape[-1] != 2 * length:
            continue
        ov.utils.replace_node(shifted, _in_blocks(product.input_value(0), table, length))
        rewritten += 1
    return rewritten


def _end_of_shift(product: ov.Node) -> ov.Node | None:
    """The last node of the shift after a product, if it is a shift's."""
    node = product
    for kind in _SHIFT:
        readers = list(node.output(0).get_target_inputs())
        if len(readers) != 1 or readers[0].get_node().get_type_name() != kind:
            return None
        node = readers[0].get_node()
    return node


def _in_blocks(queries: ov.Output, table: np.ndarray, length: int) -> ov.Node:
    """[B, H, L, D] and a table, float32 [1, H, D, 2L], to scores by position, [B, H, L, L]."""
    from openvino import opset13

    def whole(values: Sequence[int]) -> ov.Node:
        return opset13.constant(np.array(values, np.int64))

    _, heads, size, _ = table.shape
    blocks, columns = length // ROWS, ROWS + length
    # Block b has the queries i = b * ROWS + r, which read the columns length - 1 - i + j.
    starts = [length - (block + 1) * ROWS for block in range(blocks)]
    tables = np.stack([table[0, :, :, start : start + columns] for start in starts], axis=1)[None].copy()
    split = opset13.reshape(queries, whole([-1, heads, blocks, ROWS, size]), False)
    scores = opset13.matmul(split, opset13.constant(tables), False, False)
    flat = opset13.reshape(scores, whole([-1, heads, blocks, ROWS * columns]), False)
    first = ROWS - 1
    rows = opset13.slice(flat, whole([first]), whole([first + ROWS * (columns - 1)]), whole([1]), whole([3]))
    skewed = opset13.reshape(rows, whole([-1, heads, blocks, ROWS, columns - 1]), False)
    cut = opset13.slice(skewed, whole([0]), whole([length]), whole([1]), whole([4]))
    return opset13.reshape(cut, whole([-1, heads, length, length]), False)
