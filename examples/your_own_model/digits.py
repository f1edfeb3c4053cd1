"""Model, data and measure for `digits.toml`: the 256 digits that openese ships."""

from importlib import resources

import numpy as np
import torch
from torch import nn

with resources.files("openese").joinpath("data/mnist_256.npz").open("rb") as file, \
        np.load(file, allow_pickle=False) as digits:
    images = torch.from_numpy(digits["images"].reshape(-1, 784) / np.float32(255))
    labels = torch.from_numpy(digits["labels"].astype(np.int64))
training, test = slice(0, 192), slice(192, 256)


def make():
    """The model; the recipe's seed is set before this is called."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))


def batches(epoch):
    """The batches of an epoch, in an order of its own."""
    order = torch.randperm(192, generator=torch.Generator().manual_seed(epoch)).split(32)
    return [(images[training][part], labels[training][part]) for part in order]


def measure(model):
    """What the report shows after every stage."""
    wrong = model(images[test]).argmax(dim=1) != labels[test]
    return {"error_percent": 100 * float(wrong.float().mean())}


def calibration():
    """Inputs like those to come."""
    return images[training]
