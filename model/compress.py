"""One call from a trained PyTorch model to a compressed network, or to its compressed weights.

`compress` makes what an engine runs and therefore takes chains of linear and recurrent layers only.
`compress_weights` takes any module, and makes a compressed ``state_dict`` and nothing more: which
of the two a result is, is never decided by what the model happens to be.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from openese.model.balance import Balance
from openese.model.calibrate import calibrate
from openese.model.ese_file import one_way
from openese.model.extract import ChainLayer, UnsupportedModuleError, extract_chain
from openese.model.linear_weights import LinearWeights
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import (
    CompressedBidirectional,
    CompressedLayer,
    CompressedLinear,
    CompressedNetwork,
    CompressedRecurrent,
)
from openese.model.prune import Masks, expand_weights, layer_weights, resolve_weights
from openese.model.share import SharedWeights, share_weights
from openese.model.state import CompressedModel, CompressedTensor, DenseTensor

__all__ = ["compress", "compress_weights", "layer_biases", "load_into", "share_biases"]


WEIGHTS = ("shared", "linear")


def compress(model: nn.Module, *, calibration: ArrayLike | Tensor,
             density: float | Mapping[str, float] | None = None,
             quality: float | Mapping[str, float] | None = None, weights: str = "shared",
             code_bits: int | Mapping[str, int] | None = None, init: str = "linear",
             seed: int = 0, bias_bits: int | None = None, headroom: float = 1.0,
             meta: Mapping[str, str | int | float] | None = None) -> CompressedNetwork:
    """Compress a trained chain of layers for an engine: extract, prune, share, calibrate.

    Nothing is retrained. A model that was pruned and shared with `Masks` and `SharedWeights` (or
    `LinearWeights`) in a training loop passes through with every weight bit for bit, given no
    `density` or `quality` and the same `weights` and `code_bits`; any other loses accuracy here,
    most of it in pruning. The two biases of a recurrent layer are added up.

    Parameters
    ----------
    model
        A chain of Linear, ReLU, RNN, GRU, LSTM and PeepholeLSTM (`extract_chain`), float32. Not
        changed.
    calibration
        Inputs like those to come, for the binary points (`calibrate`), shaped as the model takes
        them: ``(n, ...)``; of a recurrent model sequences ``(n, steps, features)`` with
        batch_first, else ``(steps, n, features)``, or one sequence ``(steps, features)``.
    density, quality
        At most one of them. Prune to this share of the weights, or by threshold quality x
        standard deviation: one number for every matrix, or a mapping from paths and patterns
        (`resolve_weights`), which prunes the matrices it means only. Neither: weights that are 0
        are the pruned ones.
    weights
        ``"shared"``: codes of a codebook. ``"linear"``: the matrices of recurrent layers are
        rounded to fixed point (`linear_quantise`) as ESE's are, for engines with direct weights;
        Linear layers have codebooks all the same.
    code_bits
        Of every matrix, or a mapping that names every one: 1 to 8 of shared weights, 2 to 16 of
        linear ones, where a single number above 8 means 8 for Linear layers. ``None``: 4, and 12
        of linear weights.
    init, seed
        Of k-means (`kmeans`).
    bias_bits
        1 to 8: share the biases of each layer as well (`share_biases`). ``None`` keeps them.
    headroom
        Of `calibrate`.
    meta
        Facts to store with the network: strings and numbers.

    Returns
    -------
    A layer of the network for every Linear, and for every layer of a recurrent module: under the
    module's path, or where it has several layers or directions ``PATH.l0``, ``PATH.l0_reverse``
    and so on. Where the model takes the last step of its sequence, ``meta["output"]`` is
    ``"last"``: the network still has an output at every step.

    Raises
    ------
    UnsupportedModuleError
        The model computes something else than a supported chain; `compress_weights` takes it.
    ValueError
        An option out of range, a path that is no layer of the chain, linear weights without a
        recurrent layer, calibration data of another shape or not finite.
    """
    if density is not None and quality is not None:
        raise ValueError("give density or quality, not both")
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")
    try:
        chain = extract_chain(model)
    except UnsupportedModuleError as error:
        raise UnsupportedModuleError(f"{error}; for the compressed weights of any module, which "
                                     "no engine runs, use compress_weights") from error
    if isinstance(calibration, Tensor):
        calibration = calibration.detach().cpu().numpy()
    calibration = _time_first(np.asarray(calibration), chain)
    alone = chain[0].module is model
    model = copy.deepcopy(model)
    if alone:  # `extract_chain` names a lone module "0"
        model = nn.Sequential(model)
    paths = {layer.name: [f"{layer.name}.{name}" for name in layer_weights(layer.module)]
             for layer in chain}
    if density is not None:
        Masks.by_density(model, _per_matrix(model, paths, density, "density")).apply()
    if quality is not None:
        Masks.by_quality(model, _per_matrix(model, paths, quality, "quality")).apply()
    recurrent = [path for layer in chain if layer.recurrent for path in paths[layer.name]]
    rounded = recurrent if weights == "linear" else []
    if weights == "linear" and not rounded:
        raise ValueError("weights='linear' needs a recurrent layer; the model has none")
    matrices = _matrices(model, _code_bits(model, paths, code_bits, rounded), rounded,
                         init=init, seed=seed)
    for layer in chain:
        if layer.recurrent:
            _add_biases(model.get_submodule(layer.name))
    if bias_bits is not None:
        share_biases(model, bias_bits, seed=seed)
    layers = [built for layer in chain
              for built in _build(layer, model.get_submodule(layer.name), matrices)]
    meta = dict(meta or {})
    if any(layer.last for layer in chain):
        meta["output"] = "last"
    return calibrate(CompressedNetwork(layers, in_frac=0, meta=meta), calibration,
                     headroom=headroom)


def _time_first(calibration: NDArray, chain: list[ChainLayer]) -> NDArray:
    """Calibration data in the shape that `calibrate` takes."""
    recurrent = next((layer for layer in chain if layer.recurrent), None)
    if recurrent is None:
        return calibration
    batch_first, features = recurrent.module.batch_first, chain[0].in_features
    if calibration.ndim not in (2, 3) or calibration.shape[-1] != features:
        shape = f"(n, steps, {features})" if batch_first else f"(steps, n, {features})"
        raise ValueError(f"calibration must have shape {shape} or (steps, {features}), as the "
                         f"model takes it, not {calibration.shape}")
    return calibration.swapaxes(0, 1) if batch_first and calibration.ndim == 3 else calibration


def _per_matrix(model: nn.Module, paths: Mapping[str, list[str]], values, option: str) -> dict:
    """Values by parameter path; every path must be one of the chain's."""
    known = [path for matrices in paths.values() for path in matrices]
    if not isinstance(values, Mapping):
        return dict.fromkeys(known, values)
    resolved = {}
    for path, value in values.items():
        try:
            names = resolve_weights(model, path)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None
        # A pattern may mean peepholes and unused modules as well.
        names = [name for name in names if name in known]
        if not names:
            raise ValueError(f"{option}: {path!r} is no layer of the chain; its layers: "
                             f"{', '.join(paths)}")
        resolved |= dict.fromkeys(names, value)
    return resolved


def _code_bits(model: nn.Module, paths: Mapping[str, list[str]],
               code_bits: int | Mapping[str, int] | None, rounded: list[str]) -> dict[str, int]:
    """Width of every matrix by its path."""
    if code_bits is None:
        code_bits = 12 if rounded else 4
    bits = _per_matrix(model, paths, code_bits, "code_bits")
    missing = [path.removesuffix(".weight") for matrices in paths.values() for path in matrices
               if path not in bits]
    if missing:
        raise ValueError(f"code_bits must name every layer; missing: {', '.join(missing)}")
    if rounded and not isinstance(code_bits, Mapping):
        bits |= {path: min(width, 8) for path, width in bits.items() if path not in rounded}
    return bits


def _matrices(model: nn.Module, bits: dict[str, int], rounded: list[str], *, init: str, seed: int
              ) -> dict[str, CompressedMatrix | FixedMatrix]:
    """Every matrix of the chain, shared or rounded, by its path; the model's are replaced."""
    matrices = {}
    shared_bits = {path: width for path, width in bits.items() if path not in rounded}
    if shared_bits:
        shared = SharedWeights(model, shared_bits, init=init, seed=seed)
        matrices |= {path: _shared_matrix(shared, path) for path in shared.names}
    if rounded:
        try:
            linear = LinearWeights(model, {path: bits[path] for path in rounded})
        except ValueError as error:
            raise ValueError(str(error).replace(": bits must", ": code_bits must")) from None
        matrices |= {path: _fixed_matrix(linear, path, bits[path]) for path in linear.names}
    return matrices


def _shared_matrix(shared: SharedWeights, path: str) -> CompressedMatrix:
    codes = shared.codes(path)
    return CompressedMatrix.from_codes(codes.reshape(len(codes), -1), shared.codebook(path))


def _fixed_matrix(linear: LinearWeights, path: str, bits: int) -> FixedMatrix:
    raw = linear.raw(path)
    return FixedMatrix.from_raw(raw.reshape(len(raw), -1), bits, linear.frac(path))


@torch.no_grad()
def _add_biases(module: nn.RNNBase) -> None:
    """Move the second biases into the first, but for a GRU's of n: the reset gate scales it."""
    for name, second in module.named_parameters():
        if name.startswith("bias_hh"):
            first = module.get_parameter(name.replace("bias_hh", "bias_ih"))
            moved = 2 * module.hidden_size if isinstance(module, nn.GRU) else len(second)
            first[:moved] += second[:moved]
            second[:moved] = 0


def _build(layer: ChainLayer, module: nn.Module,
           matrices: Mapping[str, CompressedMatrix | FixedMatrix]) -> list[CompressedLayer]:
    """The layers of the network that a module of the chain makes."""
    if not layer.recurrent:
        matrix = matrices[f"{layer.name}.weight"]
        return [CompressedLinear(
            layer.name, matrix.cols, matrix.rows, matrix.col_ptr, matrix.row_idx, matrix.code,
            matrix.codebook, None if module.bias is None else _array("bias", module.bias),
            relu=layer.relu, out_frac=0)]
    ends = [f"l{index}" for index in range(module.num_layers)]
    if not module.bidirectional:
        return [_recurrent(layer.name, module, end, matrices) for end in ends]
    return [CompressedBidirectional(_recurrent(layer.name, module, end, matrices),
                                    _recurrent(layer.name, module, f"{end}_reverse", matrices))
            for end in ends]


def _recurrent(path: str, module: nn.RNNBase, end: str,
               matrices: Mapping[str, CompressedMatrix | FixedMatrix]) -> CompressedRecurrent:
    """One layer and direction of a recurrent module, whose parameters end in `end`."""
    def own(kind: str) -> NDArray | None:
        parameter = getattr(module, f"{kind}_{end}", None)
        return None if parameter is None else _array(kind, parameter)

    bias = own("bias_ih")
    if bias is not None and isinstance(module, nn.GRU):
        bias = np.concatenate((bias, own("bias_hh")[2 * module.hidden_size:]))
    w_ih, w_hh, w_hr = (matrices.get(f"{path}.{kind}_{end}")
                        for kind in ("weight_ih", "weight_hh", "weight_hr"))
    several = module.num_layers > 1 or module.bidirectional
    return CompressedRecurrent(
        f"{path}.{end}" if several else path, module.mode.lower(), w_ih.cols, module.hidden_size,
        w_ih, w_hh, w_hr, bias, own("weight_ch"))


def compress_weights(model: nn.Module, *, density: float | Mapping[str, float] | None = None,
                     quality: float | Mapping[str, float] | None = None,
                     balance: Balance | None = None,
                     code_bits: int | Mapping[str, int] | None = None,
                     fixed_bits: int | Mapping[str, int] | None = None,
                     bias_bits: int | None = None, init: str = "linear", seed: int = 0,
                     meta: Mapping[str, str | int | float] | None = None) -> CompressedModel:
    """Compress the weights of any module: prune, and share or round them.

    Nothing is retrained, and nothing is extracted: the result is a ``state_dict``, to be put back
    into the same module by `load_into`. A model that was pruned and shared in a training loop
    passes through with every weight bit for bit, given no `density` or `quality` and the same
    bits.

    Parameters
    ----------
    model
        Its layers' weights float32, float16 or bfloat16. Not changed.
    density, quality
        At most one of them, for every layer (`layer_weights`) or a mapping from paths or patterns
        (`resolve_weights`). Neither: weights that are 0 are the pruned ones.
    balance
        With `density`: equal counts per PE (`Masks.by_density`).
    code_bits
        1 to 8: share weights by k-means, for every layer or a mapping. 4 for every layer where
        neither this nor `fixed_bits` is given. Weights that no option means stay dense.
    fixed_bits
        2 to 16: round weights to fixed point instead (`linear_quantise`), as ESE does at 12.
    bias_bits
        1 to 8: share the biases of each layer as well (`share_biases`).
    init, seed
        Of k-means (`kmeans`).
    meta
        Facts to store: strings and numbers.

    Returns
    -------
    All of ``model.state_dict()`` in its order. bfloat16 tensors become float32, which holds them.

    Raises
    ------
    ValueError
        An option out of range, a path that means nothing, a weight under both kinds of bits, a
        weight that is not finite or of another type, an entry of the state that is no tensor or
        of a type the file has no place for.
    """
    if density is not None and quality is not None:
        raise ValueError("give density or quality, not both")
    if balance is not None and density is None:
        raise ValueError("balance needs a density")
    if code_bits is None and fixed_bits is None:
        code_bits = 4
    model = copy.deepcopy(model)
    shared_bits = {} if code_bits is None else expand_weights(model, code_bits, "to share")
    rounded_bits = {} if fixed_bits is None else expand_weights(model, fixed_bits, "to round")
    both = shared_bits.keys() & rounded_bits.keys()
    if both:
        raise ValueError(f"{min(both)!r}: give code_bits or fixed_bits, not both")
    _check_types(model, shared_bits, (torch.float32, torch.float16, torch.bfloat16))
    _check_types(model, rounded_bits, (torch.float32,))
    if density is not None:
        Masks.by_density(model, density, balance=balance).apply()
    if quality is not None:
        Masks.by_quality(model, quality).apply()
    matrices = {}
    if shared_bits:
        shared = SharedWeights(model, shared_bits, init=init, seed=seed)
        matrices |= {name: _shared_matrix(shared, name) for name in shared.names}
    if rounded_bits:
        rounded = LinearWeights(model, rounded_bits)
        matrices |= {name: _fixed_matrix(rounded, name, rounded_bits[name])
                     for name in rounded.names}
    if bias_bits is not None:
        share_biases(model, bias_bits, seed=seed)
    # A tied weight has several names in the state and one tensor.
    by_tensor = {id(model.get_parameter(name)): matrix for name, matrix in matrices.items()}
    tensors = []
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} of the state is no tensor but {type(value).__name__}")
        matrix = by_tensor.get(id(value))
        if matrix is None:
            tensors.append(DenseTensor(name, _array(name, value)))
        else:
            tensors.append(CompressedTensor(name, tuple(value.shape), matrix))
    return CompressedModel(tensors, dict(meta or {}))


def _check_types(model: nn.Module, names: Mapping[str, int], types: tuple) -> None:
    for name in names:
        dtype = model.get_parameter(name).dtype
        if dtype not in types:
            raise ValueError(f"{name!r} is {dtype}; supported are {', '.join(map(str, types))} "
                             "(model.float())")


def _array(name: str, tensor: Tensor) -> NDArray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name!r} of the state is {tensor.dtype} ({tensor.layout}), which an "
                         ".ese file has no place for") from error


def layer_biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Biases of every layer that can be compressed (`layer_weights`), by the parameter's path."""
    owners = {path.rpartition(".")[0] for path in layer_weights(model)}
    return {name: parameter for name, parameter in model.named_parameters()
            if name.rpartition(".")[0] in owners
            and name.rpartition(".")[2].startswith("bias")}


@torch.no_grad()
def share_biases(model: nn.Module, bias_bits: int, *, seed: int = 0) -> None:
    """Replace the biases of each layer (`layer_biases`) by ``2**bias_bits - 1`` values and 0.

    The values are the best there are (one-dimensional k-means, optimal). An ``.ese`` file then
    stores them and a number of `bias_bits` bits or less per bias. Biases that share as few values
    already stay as they are.

    Raises
    ------
    ValueError
        `bias_bits` not 1 to 8, biases that are not finite; the text names the parameter.
    """
    for name, bias in layer_biases(model).items():
        try:
            codes, values = share_weights(bias.detach().double().cpu().numpy(), bias_bits,
                                          init="optimal", seed=seed)
        except ValueError as error:
            text = str(error).replace("code_bits", "bias_bits")
            raise ValueError(f"{name!r}: {text}") from None
        bias.copy_(torch.from_numpy(values[codes]))


@torch.no_grad()
def load_into(module: nn.Module, compressed: CompressedNetwork | CompressedModel) -> None:
    """Put compressed weights into the module they came from, or one of the same structure.

    What the module computes then is what the compressed weights mean, bit for bit.

    Raises
    ------
    ValueError
        Names or shapes that are not the module's, or a module whose type (half precision) does
        not hold the values. The module is then left as it was.
    """
    if isinstance(compressed, CompressedModel):
        arrays = compressed.state_dict()
    else:
        arrays = {}
        for layer in one_way(compressed):
            arrays |= _parameters(module, layer)
    state = module.state_dict()
    have, want = set(state), set(arrays)
    if isinstance(compressed, CompressedNetwork):
        # Modules that are no part of the chain stay as they are.
        owners = {name.rpartition(".")[0] for name in want}
        have = {name for name in have if name.rpartition(".")[0] in owners}
    if have != want:
        missing = min(want - have) if want - have else min(have - want)
        where = "the module" if want - have else "the compressed model"
        raise ValueError(f"{where} has no {missing!r}: it is not the state of this module")
    for name, array in arrays.items():
        if tuple(state[name].shape) != array.shape:
            raise ValueError(f"{name!r}: shape {array.shape} is not the module's "
                             f"{tuple(state[name].shape)}")
        tensor = torch.from_numpy(array)
        if tensor.is_floating_point() and state[name].is_floating_point():
            again = tensor.to(state[name].dtype).to(tensor.dtype)
            held = bool(((again == tensor) | (again.isnan() & tensor.isnan())).all())
        else:
            held = tensor.dtype == state[name].dtype
        if not held:
            raise ValueError(f"{name!r}: {state[name].dtype} does not hold the values; convert "
                             "the module first (module.float())")
        state[name] = tensor
    module.load_state_dict(state)


def _parameters(module: nn.Module, layer: CompressedLinear | CompressedRecurrent
                ) -> dict[str, NDArray]:
    """The parameters of a network's layer, under the names that a module's state has."""
    # A lone Linear or recurrent module is called "0" in a network.
    alone = isinstance(module, nn.Linear | nn.RNNBase)
    if isinstance(layer, CompressedLinear):
        inside = "" if alone else f"{layer.name}."
        own = {"weight": layer.dense(), "bias": layer.bias}
        return {inside + name: array for name, array in own.items() if array is not None}
    path, end = layer.name, "l0"
    if path not in dict(module.named_modules()) and "." in path:
        path, _, end = path.rpartition(".")
    inside = "" if alone else f"{path}."
    own = {name: matrix.dense() for name, matrix in layer.matrices.items()}
    own["weight_ch"] = layer.peephole
    if layer.bias is not None:
        moved = (2 if layer.cell == "gru" else layer.slots) * layer.hidden_size
        first = layer.w_ih.rows
        own["bias_ih"] = layer.bias[:first]
        own["bias_hh"] = np.concatenate((np.zeros(moved, np.float32), layer.bias[first:]))
    return {f"{inside}{name}_{end}": array for name, array in own.items() if array is not None}
