"""The network that adds, its data, and the sums it must get right."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BITS = 8
HIDDEN = 16


class Adder(nn.Module):
    """Two bits in, one bit of the sum out at every step, least significant bits first.

    16 tanh units and one output, whose sign is the bit: above 0 means 1. Bits are given as 0 and
    1. 8 steps give the sum without its carry, modulo 256.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, HIDDEN)
        self.linear = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return self.linear(outputs)


@dataclass(frozen=True, eq=False)
class Weights:
    """The network's parameters as float32 arrays, the two biases of the RNN added up.

    w_ih (16, 2), w_hh (16, 16), b (16,), w_out (16,), b_out (1,).
    """

    w_ih: NDArray[np.float32]
    w_hh: NDArray[np.float32]
    b: NDArray[np.float32]
    w_out: NDArray[np.float32]
    b_out: NDArray[np.float32]

    @classmethod
    def of(cls, model: Adder) -> "Weights":
        values = {name: value.detach().numpy() for name, value in model.named_parameters()}
        return cls(values["rnn.weight_ih_l0"], values["rnn.weight_hh_l0"],
                   values["rnn.bias_ih_l0"] + values["rnn.bias_hh_l0"],
                   values["linear.weight"][0], values["linear.bias"])


def bits_of(numbers: NDArray[np.int64], bits: int = BITS) -> NDArray[np.int64]:
    """Bits ``(bits, n)`` of numbers ``(n,)``, the least significant first."""
    return numbers >> np.arange(bits)[:, None] & 1


def number_of(bits: NDArray) -> NDArray[np.int64]:
    """Numbers ``(n,)`` of bits ``(bits, n)``."""
    return (np.asarray(bits, dtype=np.int64) << np.arange(len(bits))[:, None]).sum(axis=0)


def all_sums() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs ``(8, 65536, 2)`` of every pair of 8-bit numbers, and their sums modulo 256."""
    a, b = np.divmod(np.arange(1 << 2 * BITS), 1 << BITS)
    x = np.stack((bits_of(a), bits_of(b)), axis=2).astype(np.float32)
    return x, (a + b) % (1 << BITS)


@torch.no_grad()
def wrong_sums(model: nn.Module) -> int:
    """How many of all 65,536 sums have a wrong bit."""
    x, sums = all_sums()
    outputs = model(torch.from_numpy(x))[:, :, 0].numpy()
    return int(np.count_nonzero(number_of(outputs > 0) != sums))
