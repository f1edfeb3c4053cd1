"""Times of compressed layers on the CPU at hand: PyTorch dense, PyTorch sparse, SciPy sparse."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openese.model.matrix import SparseColumns
from openese.model.network import CompressedLinear, CompressedRecurrent

__all__ = ["cpu_times"]

#: Calls before the first one that counts: caches fill, threads start.
WARM_UP = 3


def cpu_times(layer: CompressedLinear | CompressedRecurrent, x: NDArray, *,
              threads: tuple[int, ...] = (1,), seconds: float = 0.4, runs: int = 11
              ) -> list[dict]:
    """Time one vector through a layer in float32, weights and vector in the caches if they fit.

    Of a linear layer it is the product of matrix and vector, as in EIE's tables: no bias, no
    ReLU. Of a recurrent layer, an LSTM, it is a whole step; what comes from the input and from the
    state are one matrix, which is the faster way.

    Parameters
    ----------
    layer
        A linear layer or an LSTM.
    x
        ``(in_features,)``.
    threads
        Of PyTorch, one measurement each. SciPy has one thread.
    seconds, runs
        Calls are timed one by one for at least this long, and at least this often.

    Returns
    -------
    One dict for every way: ``name`` (``"pytorch dense"``, ``"pytorch csr"``, ``"scipy csr"``),
    ``threads``, ``us`` (median), ``runs``, and ``error``: largest difference from the layer in
    float64, over the largest output. SciPy is left out where it is not installed.

    Raises
    ------
    ValueError
        Another cell than an LSTM.
    """
    if isinstance(layer, CompressedRecurrent):
        if layer.cell != "lstm":
            raise ValueError(f"layer {layer.name!r}: only linear layers and LSTMs can be timed, "
                             f"not {layer.cell}")
        rng = np.random.default_rng(0)
        state = (rng.uniform(-0.5, 0.5, layer.out_features), rng.uniform(-1, 1, layer.hidden_size))
        expected = layer.step(np.asarray(x, np.float64), state)[0]
        vectors = {"x": x, "h": state[0], "c": state[1]}
        work = _lstm_step
    else:
        expected = layer.dense().astype(np.float64) @ x
        vectors, work = {"x": x}, _product
    vectors = {name: np.asarray(vector, np.float32) for name, vector in vectors.items()}
    found = []
    for name, library, matrix in _ways():
        call = work(layer, library, matrix, vectors)
        for count in threads if library is torch else (1,):
            with _torch_threads(count):
                error = np.abs(np.asarray(call(), np.float64) - expected).max()
                times = _times(call, seconds, runs)
            found.append({"name": name, "threads": count, "us": 1e6 * float(np.median(times)),
                          "runs": len(times), "error": float(error / np.abs(expected).max())})
        # A large dense matrix is gone before the next way makes its own.
        del call
    return found


def _ways() -> Iterator[tuple[str, ModuleType, Callable[[NDArray], Any]]]:
    """Name, library of the vectors, and what makes a library's matrix of a dense one."""
    def torch_csr(dense: NDArray):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            return torch.from_numpy(dense).to_sparse_csr()

    yield "pytorch dense", torch, torch.from_numpy
    yield "pytorch csr", torch, torch_csr
    try:
        from scipy.sparse import csr_array
    except ModuleNotFoundError:
        return
    yield "scipy csr", np, csr_array


def _product(layer: SparseColumns, library: ModuleType, matrix: Callable, vectors: dict
             ) -> Callable[[], Any]:
    """A call that multiplies a layer's matrix."""
    weight = matrix(layer.dense())
    x = library.asarray(vectors["x"])
    return lambda: weight @ x


def _lstm_step(layer: CompressedRecurrent, library: ModuleType, matrix: Callable, vectors: dict
               ) -> Callable[[], Any]:
    """A call that does a step of an LSTM and gives its output."""
    def vector(values: NDArray | None, shape: tuple[int, ...]):
        return library.asarray(np.zeros(shape, np.float32) if values is None else values)

    units = layer.hidden_size
    gates = matrix(np.concatenate([layer.w_ih.dense(), layer.w_hh.dense()], axis=1))
    project = None if layer.w_hr is None else matrix(layer.w_hr.dense())
    bias, peep = vector(layer.bias, (4 * units,)), vector(layer.peephole, (3, units))
    x, h, c = (library.asarray(vectors[name]) for name in "xhc")
    if library is torch:
        sigmoid, tanh, joined = torch.sigmoid, torch.tanh, torch.cat
    else:
        from scipy.special import expit

        sigmoid, tanh, joined = expit, np.tanh, np.concatenate

    def step():
        i, f, g, o = (gates @ joined([x, h]) + bias).reshape(4, units)
        cell = sigmoid(f + peep[1] * c) * c + sigmoid(i + peep[0] * c) * tanh(g)
        out = sigmoid(o + peep[2] * cell) * tanh(cell)
        return out if project is None else project @ out

    return step


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _times(call: Callable[[], Any], seconds: float, runs: int) -> list[float]:
    """Seconds of call after call."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < runs or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times
