"""What becomes of a checkpoint's tensors: the tables that the loader makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dbt_nn.checkpoint.tensors import BLOCK_BYTES, Tensor


@dataclass(frozen=True)
class Matrix:
    """A linear map, stored as one row per output feature and chunk of inputs.

    Attributes:
        relation: the table's name.
        weight, bias: names of tensors; without a bias it is 0.
        shape: the shape that the weight must have in the file.
        axes: the order of the weight's axes that puts the output features
            first and the inputs behind them: (0, 1) for a linear layer
            [out, in], (1, 0) for GPT-2's Conv1D [in, out], (0, 2, 3, 1) for a
            convolution [out, in, y, x] whose inputs are ordered by place.
        first, features: the part of the weight's output features that this
            table holds (fused projections are split); all by default.

    """

    relation: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    axes: tuple[int, ...] = (0, 1)
    first: int = 0
    features: int | None = None

    @property
    def outputs(self) -> int:
        """Output features in the table."""
        return self.shape[self.axes[0]] if self.features is None else self.features

    @property
    def inputs(self) -> int:
        """Inputs of each output feature."""
        return math.prod(self.shape) // self.shape[self.axes[0]]

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """The tensors it needs and their shapes."""
        bias = [(self.bias, (self.shape[self.axes[0]],))] if self.bias else []
        return [(self.weight, self.shape), *bias]

    def read(self, tensors: dict[str, Tensor], begin: int, end: int) -> np.ndarray:
        """Read features begin..end-1 -> float32 [end - begin, inputs]."""
        weight = tensors[self.weight]
        begin, end = self.first + begin, self.first + end
        if self.axes[0] == 0:
            flat = weight.read(begin * self.inputs, (end - begin) * self.inputs)
            block = flat.reshape(end - begin, *self.shape[1:]).transpose(self.axes)
            return np.ascontiguousarray(block.reshape(end - begin, self.inputs))
        rows, columns = self.shape
        if weight.size * 4 <= BLOCK_BYTES:
            block = weight.read(0, weight.size).reshape(rows, columns)[:, begin:end]
        else:
            block = np.empty((rows, end - begin), dtype="<f4")
            for row in range(rows):
                block[row] = weight.read(row * columns + begin, end - begin)
        return np.ascontiguousarray(block.T)

    def read_bias(self, tensors: dict[str, Tensor]) -> np.ndarray:
        """Read the bias -> float32 [outputs]."""
        if self.bias is None:
            return np.zeros(self.outputs, dtype="<f4")
        return tensors[self.bias].read(self.first, self.outputs)


@dataclass(frozen=True)
class Norm:
    """A normalisation's scale and shift, stored as one row of two vectors.

    Without a bias, as in an RMS norm, the shift is 0.
    """

    relation: str
    weight: str
    bias: str | None
    size: int

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """The tensors it needs and their shapes."""
        bias = [(self.bias, (self.size,))] if self.bias else []
        return [(self.weight, (self.size,)), *bias]


@dataclass(frozen=True)
class Alias:
    """A module that shares another's weights, stored as a view.

    `copy` names the tensor that may hold the same weights once more.
    """

    relation: str
    target: str
    copy: str

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """The tensors it needs: none of its own."""
        return []


Module = Matrix | Norm | Alias
