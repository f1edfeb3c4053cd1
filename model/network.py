"""The compressed network: what an ``.ese`` file stores, independent of any engine.

`CompressedLinear` keeps a pruned, weight-shared matrix as columns of (row, code) and a float32
codebook, so that it is exactly the compressed PyTorch layer. `QuantisedNetwork`
(`openese.model.quantise`) turns it into the integers the hardware computes with.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openese.model.matrix import SharedColumns, sparse_columns

__all__ = ["CompressedLinear", "CompressedNetwork"]


@dataclass(eq=False)
class CompressedLinear(SharedColumns):
    """A pruned, weight-shared linear layer ``y = act(W x + b)`` in compressed sparse columns.

    Parameters
    ----------
    name
        Path of the module in the user's model, as ``named_modules`` gives it.
    in_features, out_features
        Columns and rows of ``W``.
    col_ptr
        int64 ``(in_features + 1,)``; column ``j`` is the slice ``col_ptr[j]:col_ptr[j + 1]``.
    row_idx
        int32 ``(nnz,)``; rows, strictly increasing within a column.
    code
        uint8 ``(nnz,)``; indices into the codebook, never 0.
    codebook
        float32 ``(2**code_bits,)``; entry 0 is exactly 0, the value of every pruned weight.
    bias
        float32 ``(out_features,)`` or ``None``.
    relu
        Whether a ReLU follows.
    out_frac
        Binary point of the output activations (signed 16 bit), from calibration.

    Raises
    ------
    ValueError
        Arrays that do not form such a layer; the text names the layer and what is wrong.
    """

    name: str
    in_features: int
    out_features: int
    col_ptr: NDArray[np.int64]
    row_idx: NDArray[np.int32]
    code: NDArray[np.uint8]
    codebook: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    relu: bool
    out_frac: int

    def __post_init__(self) -> None:
        what = f"layer {self.name!r}"
        self._check_shared(what)
        if self.bias is not None:
            self.bias = np.asarray(self.bias, dtype=np.float32)
            if self.bias.shape != (self.out_features,):
                raise ValueError(f"{what}: bias must have {self.out_features} elements, "
                                 f"not {self.bias.shape}")
            if not np.isfinite(self.bias).all():
                raise ValueError(f"{what}: bias must be finite")

    @property
    def rows(self) -> int:
        """Rows of ``W``."""
        return self.out_features

    @property
    def cols(self) -> int:
        """Columns of ``W``."""
        return self.in_features

    @classmethod
    def from_codes(cls, name: str, codes: NDArray, codebook: NDArray, bias: NDArray | None,
                   *, relu: bool, out_frac: int) -> "CompressedLinear":
        """Build a layer from a dense ``(out_features, in_features)`` array of codes."""
        rows, cols, *entries = sparse_columns(codes)
        return cls(name, cols, rows, *entries, codebook, bias, relu=relu, out_frac=out_frac)


@dataclass(eq=False)
class CompressedNetwork:
    """A chain of compressed layers with the binary point of its input.

    Parameters
    ----------
    layers
        At least one layer; the sizes of neighbours must agree.
    in_frac
        Binary point of the input activations (signed 16 bit), from calibration.
    act_bits
        Width of activations.
    meta
        Free-form facts for people: recipe, accuracies, data set. Strings and numbers only.

    Raises
    ------
    ValueError
        No layers, or neighbours whose sizes differ.
    """

    layers: list[CompressedLinear]
    in_frac: int
    act_bits: int = 16
    meta: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a network needs at least one layer")
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if before.out_features != after.in_features:
                raise ValueError(
                    f"layer {after.name!r} takes {after.in_features} inputs but layer "
                    f"{before.name!r} gives {before.out_features}")

    @property
    def in_features(self) -> int:
        """Length of an input vector."""
        return self.layers[0].in_features

    @property
    def out_features(self) -> int:
        """Length of an output vector."""
        return self.layers[-1].out_features

    def forward(self, x: NDArray) -> NDArray[np.float64]:
        """Float reference: ``(n, in_features)`` to ``(n, out_features)`` in float64."""
        y = np.asarray(x, dtype=np.float64)
        for layer in self.layers:
            y = y @ layer.dense().astype(np.float64).T
            if layer.bias is not None:
                y = y + layer.bias.astype(np.float64)
            if layer.relu:
                y = np.maximum(y, 0.0)
        return y
