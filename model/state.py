"""The compressed state of any model: a ``state_dict`` whose matrices are pruned and shared.

Where a `CompressedNetwork` is a chain that an engine can run, a `CompressedModel` is what remains
true for every PyTorch module: names and tensors. Both live in ``.ese`` files.
"""

from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from openese.model.matrix import CompressedMatrix, FixedMatrix

__all__ = ["DTYPES", "CompressedModel", "CompressedTensor", "DenseTensor"]

#: Types of dense tensors; their order is part of the ``.ese`` format.
DTYPES = tuple(np.dtype(name) for name in (
    "float32", "float64", "float16", "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32",
    "uint64", "int64"))


@dataclass(eq=False)
class CompressedTensor:
    """A compressed tensor of a state: convolution kernel, recurrent matrix, bias, ...

    Parameters
    ----------
    name
        Its key in the ``state_dict``.
    shape
        At least one dimension.
    matrix
        The tensor seen as a matrix, ``shape[0]`` x product of the others.

    Raises
    ------
    ValueError
        A matrix of another size; the text names the tensor.
    """

    name: str
    shape: tuple[int, ...]
    matrix: CompressedMatrix | FixedMatrix

    def __post_init__(self) -> None:
        self.shape = tuple(int(size) for size in self.shape)
        size = (self.matrix.rows, self.matrix.cols)
        if not self.shape or size != (self.shape[0], prod(self.shape[1:])):
            raise ValueError(f"tensor {self.name!r}: a matrix of {size[0]} x {size[1]} is none of "
                             f"shape {self.shape}")

    def array(self) -> NDArray[np.float32]:
        """The tensor itself, float32."""
        return self.matrix.dense().reshape(self.shape)


@dataclass(eq=False)
class DenseTensor:
    """A tensor of a state that is stored as it is: float or integer, any shape, any values.

    Parameters
    ----------
    name
        Its key in the ``state_dict``.
    values
        One of `DTYPES`.

    Raises
    ------
    ValueError
        Another type; the text names the tensor.
    """

    name: str
    values: NDArray

    def __post_init__(self) -> None:
        # Always native byte order, rows first and a copy of its own.
        values = np.asarray(self.values)
        dtype = values.dtype.newbyteorder("=")
        if dtype not in DTYPES:
            raise ValueError(f"tensor {self.name!r}: cannot hold {values.dtype}; supported are "
                             f"{', '.join(map(str, DTYPES))}")
        self.values = np.array(values, dtype=dtype, order="C")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.values.shape

    def array(self) -> NDArray:
        """The tensor itself, a copy."""
        return self.values.copy()


@dataclass(eq=False)
class CompressedModel:
    """The state of a model, some of its tensors compressed, in the order of its ``state_dict``.

    Parameters
    ----------
    tensors
        At least one; names differ.
    meta
        Free-form facts for people: recipe, accuracies, data set. Strings and numbers only.

    Raises
    ------
    ValueError
        No tensors, or a name twice.
    """

    tensors: list[CompressedTensor | DenseTensor]
    meta: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("a compressed model needs at least one tensor")
        names = [tensor.name for tensor in self.tensors]
        names = set()
        for tensor in self.tensors:
            if tensor.name in names:
                raise ValueError(f"a compressed model has each tensor once, not {tensor.name!r} "
                                 "twice")
            names.add(tensor.name)

    def __getitem__(self, name: str) -> CompressedTensor | DenseTensor:
        """The tensor of this name; ``KeyError`` where there is none."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)

    def state_dict(self) -> dict[str, NDArray]:
        """All tensors as arrays by name, in order.

        What the compressed model computes with, bit for bit. `openese.model.compress.load_into`
        puts them into a PyTorch module.
        """
        return {tensor.name: tensor.array() for tensor in self.tensors}
