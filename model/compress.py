"""One call from a trained PyTorch model to a compressed network, or to its compressed weights.

`compress` makes what an engine runs and therefore takes chains of linear layers only.
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
from openese.model.extract import UnsupportedModuleError, extract_chain
from openese.model.linear_weights import LinearWeights
from openese.model.matrix import CompressedMatrix, FixedMatrix
from openese.model.network import CompressedLinear, CompressedNetwork
from openese.model.prune import Masks, expand_weights, layer_weights, resolve_weight
from openese.model.share import SharedWeights, share_weights
from openese.model.state import CompressedModel, CompressedTensor, DenseTensor

__all__ = ["compress", "compress_weights", "layer_biases", "load_into", "share_biases"]


def compress(model: nn.Module, *, calibration: ArrayLike | Tensor,
             density: float | Mapping[str, float] | None = None,
             quality: float | Mapping[str, float] | None = None,
             code_bits: int | Mapping[str, int] = 4, init: str = "linear", seed: int = 0,
             bias_bits: int | None = None, headroom: float = 1.0,
             meta: Mapping[str, str | int | float] | None = None) -> CompressedNetwork:
    """Compress a trained chain of linear layers for an engine: extract, prune, share, calibrate.

    Nothing is retrained. A model that was pruned and shared with `Masks` and `SharedWeights` in
    a training loop passes through with every weight bit for bit, given no `density` or `quality`
    and the same `code_bits`; any other loses accuracy here, most of it in pruning.

    Parameters
    ----------
    model
        A chain of Linear and ReLU (`extract_chain`), float32. Not changed.
    calibration
        Inputs ``(n, ...)`` like those to come, for the binary points (`calibrate`).
    density, quality
        At most one of them. Prune to this share of the weights, or by threshold quality x
        standard deviation: one number for every layer, or a mapping from paths, which prunes
        the named layers only. Neither: weights that are 0 are the pruned ones.
    code_bits
        1 to 8, for every layer, or a mapping that names every layer.
    init, seed
        Of k-means (`kmeans`).
    bias_bits
        1 to 8: share the biases of each layer as well (`share_biases`). ``None`` keeps them.
    headroom
        Of `calibrate`.
    meta
        Facts to store with the network: strings and numbers.

    Raises
    ------
    UnsupportedModuleError
        The model computes something else than a supported chain; `compress_weights` takes it.
    ValueError
        An option out of range, a path that is no layer of the chain, calibration data of another
        shape or not finite.
    """
    if density is not None and quality is not None:
        raise ValueError("give density or quality, not both")
    try:
        chain = extract_chain(model)
    except UnsupportedModuleError as error:
        raise UnsupportedModuleError(f"{error}; for the compressed weights of any module, which "
                                     "no engine runs, use compress_weights") from error
    alone = chain[0].module is model
    model = copy.deepcopy(model)
    if alone:  # `extract_chain` names a lone Linear "0"
        model = nn.Sequential(model)
    names = [layer.name for layer in chain]
    if density is not None:
        Masks.by_density(model, _per_layer(model, names, density, "density")).apply()
    if quality is not None:
        Masks.by_quality(model, _per_layer(model, names, quality, "quality")).apply()
    bits = _per_layer(model, names, code_bits, "code_bits")
    missing = [name for name in names if f"{name}.weight" not in bits]
    if missing:
        raise ValueError(f"code_bits must name every layer; missing: {', '.join(missing)}")
    shared = SharedWeights(model, bits, init=init, seed=seed)
    if bias_bits is not None:
        share_biases(model, bias_bits, seed=seed)
    layers = []
    for layer in chain:
        weight = f"{layer.name}.weight"
        bias = model.get_submodule(layer.name).bias
        layers.append(CompressedLinear.from_codes(
            layer.name, shared.codes(weight), shared.codebook(weight),
            None if bias is None else bias.detach().cpu().numpy(),
            relu=layer.relu, out_frac=0))
    network = CompressedNetwork(layers, in_frac=0, meta=dict(meta or {}))
    if isinstance(calibration, Tensor):
        calibration = calibration.detach().cpu().numpy()
    return calibrate(network, np.asarray(calibration), headroom=headroom)


def _per_layer(model: nn.Module, names: list[str], values, option: str) -> dict:
    """Values by parameter path; every path must be a layer of the chain."""
    if not isinstance(values, Mapping):
        return {f"{name}.weight": values for name in names}
    weights = {f"{name}.weight" for name in names}
    resolved = {}
    for path, value in values.items():
        try:
            name = resolve_weight(model, path)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None
        if name not in weights:
            raise ValueError(f"{option}: {path!r} is no layer of the chain; its layers: "
                             f"{', '.join(names)}")
        resolved[name] = value
    return resolved


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
        for name in shared.names:
            codes = shared.codes(name)
            matrices[name] = CompressedMatrix.from_codes(codes.reshape(len(codes), -1),
                                                         shared.codebook(name))
    if rounded_bits:
        rounded = LinearWeights(model, rounded_bits)
        for name in rounded.names:
            raw = rounded.raw(name)
            matrices[name] = FixedMatrix.from_raw(raw.reshape(len(raw), -1), rounded_bits[name],
                                                  rounded.frac(name))
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
        for layer in compressed.layers:
            # A lone Linear is called "0" in a network.
            inside = "" if isinstance(module, nn.Linear) else f"{layer.name}."
            arrays[f"{inside}weight"] = layer.dense()
            if layer.bias is not None:
                arrays[f"{inside}bias"] = layer.bias
    state = module.state_dict()
    have, want = set(state), set(arrays)
    if want - have or (isinstance(compressed, CompressedModel) and have - want):
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
