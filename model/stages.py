"""Networks with bidirectional layers, as runs of an engine one after the other.

An engine goes through a sequence once, in one direction. A bidirectional layer is two runs over
the whole sequence, and what follows it needs both of their outputs.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openese.model.network import CompressedBidirectional, CompressedNetwork

__all__ = ["Stage", "split_stages"]


@dataclass(frozen=True)
class Stage:
    """One or two runs over the same sequence.

    Parameters
    ----------
    networks
        A network without bidirectional layers; or two, of which the second gets the sequence from
        its end, and whose outputs are concatenated.
    """

    networks: tuple[CompressedNetwork, ...]

    def directed(self, run: int, steps: NDArray) -> NDArray:
        """The sequence ``(steps, ...)`` in the direction of a run; its own inverse."""
        return steps[::-1] if run else steps

    def with_in_frac(self, in_frac: int) -> "Stage":
        """The same for inputs with this binary point."""
        return Stage(tuple(replace(network, in_frac=in_frac) for network in self.networks))

    def joined(self, outputs: list[NDArray]) -> NDArray:
        """Outputs of all runs, each in its own direction, as one sequence."""
        return np.concatenate(
            [self.directed(run, y) for run, y in enumerate(outputs)], axis=-1)


def split_stages(network: CompressedNetwork) -> list[Stage]:
    """The runs that compute a network; one stage of one network if no layer is bidirectional.

    Binary points of inputs are those of the compressed layers; quantising may lower the output's,
    and with it the next stage's input (`Stage.with_in_frac`).
    """
    stages, chain, frac = [], [], network.in_frac

    def finish_chain() -> None:
        if chain:
            stages.append(Stage((CompressedNetwork(list(chain), frac, network.act_bits),)))
            chain.clear()

    for layer in network.layers:
        if isinstance(layer, CompressedBidirectional):
            finish_chain()
            frac = stages[-1].networks[0].layers[-1].out_frac if stages else network.in_frac
            stages.append(Stage(tuple(
                CompressedNetwork([part], frac, network.act_bits)
                for part in (layer.ahead, layer.back))))
            frac = layer.out_frac
        else:
            chain.append(layer)
    finish_chain()
    return stages
