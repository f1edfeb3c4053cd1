"""One call from a trained PyTorch model to a compressed network."""

import copy
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from openese.model.calibrate import calibrate
from openese.model.extract import extract_chain
from openese.model.network import CompressedLinear, CompressedNetwork
from openese.model.prune import Masks, resolve_weight
from openese.model.share import SharedWeights

__all__ = ["compress"]


def compress(model: nn.Module, *, calibration: ArrayLike | Tensor,
             density: float | Mapping[str, float] | None = None,
             quality: float | Mapping[str, float] | None = None,
             code_bits: int | Mapping[str, int] = 4, init: str = "linear", seed: int = 0,
             headroom: float = 1.0, meta: Mapping[str, str | int | float] | None = None
             ) -> CompressedNetwork:
    """Compress a trained model: extract, prune, share, calibrate.

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
    headroom
        Of `calibrate`.
    meta
        Facts to store with the network: strings and numbers.

    Raises
    ------
    UnsupportedModuleError
        The model computes something else than a supported chain.
    ValueError
        An option out of range, a path that is no layer of the chain, calibration data of another
        shape or not finite.
    """
    if density is not None and quality is not None:
        raise ValueError("give density or quality, not both")
    chain = extract_chain(model)
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
