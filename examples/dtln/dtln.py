"""DTLN, a speech denoiser of two small recurrent networks, read from its ONNX files, in NumPy.

Westhausen and Meyer, "Dual-Signal Transformation LSTM Network for Real-Time Noise Suppression",
Interspeech 2020. Frames of 512 samples at 16 kHz, 128 apart. The first network sees the magnitudes
of a frame's spectrum and gives a mask for them; the second sees 256 learned features of the frame
so masked, normalised, and gives a mask for these; a learned synthesis and overlap-add follow. Each
network is two LSTM layers of 128 units and a dense layer with sigmoid; the states run on from
frame to frame.

The two LSTM stacks are what the accelerator takes over: `enhance` leaves them to two functions.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openese.model.formats import QFormat
from openese.model.linear_weights import linear_quantise
from openese.model.matrix import FixedMatrix
from openese.model.network import CompressedNetwork, CompressedRecurrent

__all__ = ["BINS", "FEATURES", "FRAME", "HOP", "UNITS", "Dtln", "DtlnError", "Lstm", "Stack",
           "add_noise", "compress_stack", "enhance", "float_stack", "frames_of", "lstm",
           "overlap_add", "read_dtln", "si_sdr"]

FRAME, HOP = 512, 128
BINS, FEATURES, UNITS = FRAME // 2 + 1, 256, 128
EPSILON = 1e-7  # of the normalisation, as in the ONNX file

#: A stack of layers over time: features ``(frames, ..., n)`` to ``(frames, ..., 128)``.
Stack = Callable[[NDArray], NDArray]

_MASK_FILE, _TIME_FILE = "model_1.onnx", "model_2.onnx"
_OUT = "model_2/{}/ReadVariableOp/resource:0"
# Names and shapes of what is read from each file.
_SHAPES = {
    _MASK_FILE: {
        "lstm_4_W": (1, 4 * UNITS, BINS), "lstm_4_R": (1, 4 * UNITS, UNITS),
        "lstm_4_B": (1, 8 * UNITS), "lstm_5_W": (1, 4 * UNITS, UNITS),
        "lstm_5_R": (1, 4 * UNITS, UNITS), "lstm_5_B": (1, 8 * UNITS),
        "dense_2/kernel:0": (UNITS, BINS), "dense_2/bias:0": (BINS,),
    },
    _TIME_FILE: {
        "conv1d_2/kernel:0": (FEATURES, FRAME, 1),
        _OUT.format("instant_layer_normalization_1/mul"): (FEATURES,),
        _OUT.format("instant_layer_normalization_1/add_1"): (FEATURES,),
        _OUT.format("lstm_6/MatMul"): (FEATURES, 4 * UNITS),
        _OUT.format("lstm_6/MatMul_1"): (UNITS, 4 * UNITS),
        _OUT.format("lstm_6/BiasAdd"): (4 * UNITS,),
        _OUT.format("lstm_7/MatMul"): (UNITS, 4 * UNITS),
        _OUT.format("lstm_7/MatMul_1"): (UNITS, 4 * UNITS),
        _OUT.format("lstm_7/BiasAdd"): (4 * UNITS,),
        "model_2/dense_3/Tensordot/Reshape_1:0": (UNITS, FEATURES),
        _OUT.format("dense_3/BiasAdd"): (FEATURES,),
        "conv1d_3/kernel:0": (FRAME, FEATURES, 1),
    },
}


class DtlnError(ValueError):
    """Weights or prompts cannot be had; the text says which file or command and what to do."""


@dataclass(frozen=True, eq=False)
class Lstm:
    """Weights of an LSTM layer in PyTorch's order of gates: i, f, g, o.

    `w_ih` is ``(4 * units, inputs)``, `w_hh` ``(4 * units, units)``, `bias` ``(4 * units,)`` (the
    sum of PyTorch's two), all float64.
    """

    w_ih: NDArray[np.float64]
    w_hh: NDArray[np.float64]
    bias: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dtln:
    """All weights, float64. Matrices are ``(outputs, inputs)``.

    Parameters
    ----------
    stacks
        The two LSTM layers of each network.
    masks
        Matrix and bias of each network's dense layer.
    analysis, synthesis
        ``(256, 512)`` and ``(512, 256)``: from a frame to features and back.
    gain, offset
        ``(256,)``, of the normalisation.
    """

    stacks: tuple[list[Lstm], list[Lstm]]
    masks: tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]
    analysis: NDArray[np.float64]
    synthesis: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]


def read_dtln(folder: Path) -> Dtln:
    """The weights in ``model_1.onnx`` and ``model_2.onnx`` of a folder.

    ONNX keeps the gates of its LSTM operator in the order i, o, f, c (and adds two biases); they
    are brought into PyTorch's, where c is called g. The second file has its LSTMs unrolled into
    matrix products, in the order of TensorFlow, which is PyTorch's.

    Raises
    ------
    DtlnError
        The package ``onnx`` or a file is missing, or a file does not hold these weights.
    """
    mask, time = (_initializers(Path(folder) / name) for name in (_MASK_FILE, _TIME_FILE))

    def from_operator(name: str) -> Lstm:
        w, r, b = (mask[f"{name}_{part}"][0] for part in "WRB")
        return Lstm(_iofc_to_ifgo(w), _iofc_to_ifgo(r), _iofc_to_ifgo(b[:len(w)] + b[len(w):]))

    def from_products(name: str) -> Lstm:
        w, r, b = (time[_OUT.format(f"{name}/{part}")] for part in ("MatMul", "MatMul_1",
                                                                   "BiasAdd"))
        return Lstm(w.T, r.T, b)

    return Dtln(
        stacks=([from_operator("lstm_4"), from_operator("lstm_5")],
                [from_products("lstm_6"), from_products("lstm_7")]),
        masks=((mask["dense_2/kernel:0"].T, mask["dense_2/bias:0"]),
               (time["model_2/dense_3/Tensordot/Reshape_1:0"].T,
                time[_OUT.format("dense_3/BiasAdd")])),
        analysis=time["conv1d_2/kernel:0"][..., 0],
        synthesis=time["conv1d_3/kernel:0"][..., 0],
        gain=time[_OUT.format("instant_layer_normalization_1/mul")],
        offset=time[_OUT.format("instant_layer_normalization_1/add_1")])


def _initializers(path: Path) -> dict[str, NDArray[np.float64]]:
    """The arrays of `_SHAPES` that a file holds."""
    try:
        import onnx
    except ImportError as error:
        raise DtlnError("reading ONNX files needs the package onnx: "
                        "pip install 'openese[dtln]'") from error
    try:
        graph = onnx.load_model_from_string(path.read_bytes()).graph
    except OSError as error:
        raise DtlnError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # protobuf's own, whose module depends on its version
        raise DtlnError(f"{path}: no ONNX file ({error})") from error
    found = {t.name: t for t in graph.initializer}
    arrays = {}
    for name, shape in _SHAPES[path.name].items():
        if name not in found:
            raise DtlnError(f"{path}: no weights {name!r}; this is not DTLN's {path.name}")
        if tuple(found[name].dims) != shape:
            raise DtlnError(f"{path}: {name} must be {shape}, not {tuple(found[name].dims)}")
        arrays[name] = onnx.numpy_helper.to_array(found[name]).astype(np.float64)
    return arrays


def _iofc_to_ifgo(rows: NDArray) -> NDArray:
    i, o, f, c = np.split(rows, 4)
    return np.concatenate([i, f, c, o])


def _sigmoid(x: NDArray) -> NDArray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def lstm(weights: Lstm, x: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hidden and cell states of all steps, from zero states: ``(steps, ..., n)`` each."""
    units = weights.w_hh.shape[1]
    a_x = x @ weights.w_ih.T + weights.bias
    h = np.zeros((*x.shape[:-1], units))
    c = np.zeros_like(h)
    h_now = c_now = np.zeros(h.shape[1:])
    for t, now in enumerate(a_x):
        i, f, g, o = np.split(now + h_now @ weights.w_hh.T, 4, axis=-1)
        c_now = _sigmoid(f) * c_now + _sigmoid(i) * np.tanh(g)
        h_now = _sigmoid(o) * np.tanh(c_now)
        h[t], c[t] = h_now, c_now
    return h, c


def float_stack(layers: list[Lstm]) -> Stack:
    """The stack of layers in float64."""
    def run(x: NDArray) -> NDArray[np.float64]:
        for layer in layers:
            x, _ = lstm(layer, x)
        return x
    return run


def frames_of(sound: NDArray) -> NDArray[np.float64]:
    """Overlapping frames ``(frames, ..., 512)`` of sound ``(..., samples)``.

    The sound is taken to be silent before its start and after its end, so that every sample is in
    four frames.
    """
    padding = FRAME - HOP
    count = -(-(sound.shape[-1] + padding) // HOP)
    padded = np.zeros((*sound.shape[:-1], (count - 1) * HOP + FRAME))
    padded[..., padding:padding + sound.shape[-1]] = sound
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME, axis=-1)[..., ::HOP, :]
    return np.moveaxis(frames, -2, 0)


def overlap_add(frames: NDArray, samples: int) -> NDArray[np.float64]:
    """The sum of overlapping frames: the inverse of `frames_of`, four times as loud."""
    padding = FRAME - HOP
    sound = np.zeros((*frames.shape[1:-1], (len(frames) - 1) * HOP + FRAME))
    for t, frame in enumerate(frames):
        sound[..., t * HOP:t * HOP + FRAME] += frame
    return sound[..., padding:padding + samples]


def enhance(model: Dtln, sound: NDArray, stacks: tuple[Stack, Stack]) -> NDArray[np.float64]:
    """Denoise sound.

    Parameters
    ----------
    model
        The weights of everything but the LSTM stacks.
    sound
        ``(..., samples)`` at 16 kHz, between -1 and 1.
    stacks
        What runs the LSTM stacks; each is called once, with the features of all frames in order.

    Returns
    -------
    float64 like `sound`, in time with it.
    """
    def mask(features: NDArray, k: int) -> NDArray:
        matrix, bias = model.masks[k]
        return _sigmoid(stacks[k](features) @ matrix.T + bias)

    spectrum = np.fft.rfft(frames_of(sound))
    frames = np.fft.irfft(spectrum * mask(np.abs(spectrum), 0), n=FRAME)
    features = frames @ model.analysis.T
    centred = features - features.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
    normalised = centred / deviation * model.gain + model.offset
    return overlap_add((features * mask(normalised, 1)) @ model.synthesis.T, sound.shape[-1])


def compress_stack(layers: list[Lstm], inputs: list[NDArray], name: str, *, weight_bits: int = 12,
                   act_bits: int = 16) -> CompressedNetwork:
    """A stack of layers in linear fixed-point weights, with formats from measured ranges.

    Parameters
    ----------
    layers
        All weights are kept; none is pruned.
    inputs
        Sequences ``(steps, ..., n)`` to calibrate with: the input's binary point comes from the
        largest magnitude of these, that of each layer's cell state from the largest it reaches.
    name
        Of the stack; layers are called ``name.l0``, ``name.l1``.
    weight_bits, act_bits
        Widths of weights, and of activations and cell states.
    """
    largest_cells = []
    x = inputs
    for layer in layers:
        pairs = [lstm(layer, values) for values in x]
        x = [h for h, _ in pairs]
        largest_cells.append(max(float(np.abs(c).max()) for _, c in pairs))

    def fixed(matrix: NDArray) -> FixedMatrix:
        raw, frac = linear_quantise(matrix, weight_bits)
        return FixedMatrix.from_raw(raw, weight_bits, frac)

    compressed = [
        CompressedRecurrent(
            f"{name}.l{k}", "lstm", layer.w_ih.shape[1], layer.w_hh.shape[1],
            fixed(layer.w_ih), fixed(layer.w_hh), bias=layer.bias, out_frac=act_bits - 1,
            cell_frac=QFormat.covering(act_bits, largest, act_bits - 1).frac)
        for k, (layer, largest) in enumerate(zip(layers, largest_cells, strict=True))]
    magnitude = max(float(np.abs(values).max()) for values in inputs)
    return CompressedNetwork(compressed, QFormat.covering(act_bits, magnitude).frac, act_bits)


def si_sdr(clean: NDArray, sound: NDArray) -> float:
    """Scale-invariant signal to distortion ratio in dB (Le Roux et al., ICASSP 2019)."""
    clean, sound = clean - clean.mean(), sound - sound.mean()
    target = (sound @ clean) / (clean @ clean) * clean
    return 10 * float(np.log10((target @ target) / np.sum(np.square(sound - target))))


def add_noise(name: str, clean: NDArray, snr: float) -> NDArray[np.float64]:
    """White Gaussian noise, `snr` dB below the recording; its seed is the recording's name."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=len(clean))
    return clean + noise * np.sqrt((clean @ clean) / (noise @ noise) * 10 ** (-snr / 10))
