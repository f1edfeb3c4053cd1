"""The model of this example, its data, and how a digit is told from outputs at every frame."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openese.model.peephole import PeepholeLSTM
from openese.model.spoken_digits import COEFFICIENTS, load_spoken_digits

HIDDEN, PROJECTION = 128, 64


class Speech(nn.Module):
    """13 coefficients to 10 outputs at every frame, ``(n, frames, ...)``.

    An LSTM with peepholes and a projection, and a linear layer. The digit is the largest of the
    outputs' means over the frames of a recording, which is left to the user of the outputs:
    `named`.
    """

    def __init__(self, hidden: int = HIDDEN, projection: int = PROJECTION,
                 dropout: float = 0.3) -> None:
        super().__init__()
        self.lstm = PeepholeLSTM(COEFFICIENTS, hidden, batch_first=True, proj_size=projection)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(projection, 10)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x)
        return self.linear(self.dropout(outputs))


@dataclass(frozen=True, eq=False)
class Recordings:
    """A split: features ``(n, frames, 13)``, lengths and labels ``(n,)``."""

    features: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load(split: str, path: str | None = None) -> Recordings:
    """A split of the spoken digits as tensors (`load_spoken_digits`)."""
    digits = load_spoken_digits(split, path)
    return Recordings(*map(torch.from_numpy, (digits.features, digits.lengths, digits.labels)))


def mean_over_frames(outputs: Tensor, lengths: Tensor) -> Tensor:
    """Outputs ``(n, frames, 10)`` to their means ``(n, 10)`` over each recording's own frames."""
    valid = torch.arange(outputs.shape[1]) < lengths[:, None]
    return (outputs * valid[:, :, None]).sum(dim=1) / lengths[:, None]


def named(outputs: NDArray) -> int:
    """The digit that the outputs ``(frames, 10)`` of one recording name."""
    return int(np.asarray(outputs, dtype=np.float64).mean(axis=0).argmax())


@torch.no_grad()
def accuracy(model: nn.Module, data: Recordings) -> float:
    """Share of digits named right, in per cent."""
    model.eval()
    right = 0
    for x, lengths, labels in zip(*(part.split(250) for part in (
            data.features, data.lengths, data.labels)), strict=True):
        outputs = model(x[:, :int(lengths.max())])
        right += int((mean_over_frames(outputs, lengths).argmax(dim=1) == labels).sum())
    return 100 * right / len(data)
