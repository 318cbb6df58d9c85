"""Arithmetic for constants that must be the same on every CPU.

A float64 matrix product depends, in its last bits, on the order of its sums, so on the CPU's vector width and on the
number of threads; rounded to float32 it can still differ by one unit. Here every sum is exact, so no order matters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float64]


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """x W^T + b: x [m, k], W [n, k], b [n] -> float64 [m, n], the same bits on every CPU.

    Exact to about 2^-40 of the largest term: far below float32's own rounding.
    """
    product = matmul(_array(x), _array(layer.weight).T)
    return torch.from_numpy(product + _array(layer.bias))


def layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """LayerNorm over the last axis of x [m, k] -> float64 [m, k]; sums by math.fsum, which rounds once in any order."""
    rows, size = _array(x), x.shape[1]
    centred = rows - np.array([[math.fsum(row) / size] for row in rows.tolist()])
    variance = np.array([[math.fsum(row) / size] for row in (centred * centred).tolist()])
    return torch.from_numpy(centred / np.sqrt(variance + layer.eps) * _array(layer.weight) + _array(layer.bias))


def matmul(a: Array, b: Array) -> Array:
    """[m, k] x [k, n] in float64, by error-free splitting (Ozaki et al. 2012, doi:10.1007/s11075-011-9478-1).

    Each operand becomes two slices of so few bits that all products of slices, and their sums, fit float64 exactly.
    """
    bits = (53 - math.ceil(math.log2(a.shape[1]))) // 2
    a_high, a_low = _slices(a, 1, bits)
    b_high, b_low = _slices(b, 0, bits)
    return a_high @ b_high + (a_high @ b_low + a_low @ b_high) + a_low @ b_low


def _slices(x: Array, axis: int, bits: int) -> tuple[Array, Array]:
    """The leading `bits` bits of x, counted from the largest exponent along `axis`, and the `bits` bits after those."""
    exponent = np.frexp(np.abs(x).max(axis=axis, keepdims=True))[1]
    high = _round_to(x, exponent - bits)
    return high, _round_to(x - high, exponent - 2 * bits)


def _round_to(x: Array, exponent: npt.NDArray[Any]) -> Array:
    """x rounded to multiples of 2^exponent; scaling by powers of two is exact."""
    rounded: Array = np.ldexp(np.rint(np.ldexp(x, -exponent)), exponent)
    return rounded


def _array(x: Tensor) -> Array:
    return x.detach().double().numpy()
