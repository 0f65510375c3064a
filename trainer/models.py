"""The classifiers: images in [0, 1] to logits and the embedding that the regularisers act on.

B images, (C, H, W) channels, height, width, K classes, D embedding size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.config import ARCHITECTURES, InputError, did_you_mean

HIDDEN = 256


class Prediction(NamedTuple):
    """What a model says of a batch."""

    logits: Tensor
    """(B, K)."""
    embedding: Tensor
    """(B, D), what the linear head reads."""


class Classifier(nn.Module):
    """Normalisation, encoder f, linear head g."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, *, shape: tuple[int, int, int], head: nn.Linear, mean: Tensor, std: Tensor):
        super().__init__()
        self.shape = shape
        self.encoder = encoder
        self.head = head
        self.register_buffer("mean", mean.detach().clone().reshape(-1, 1, 1))
        self.register_buffer("std", std.detach().clone().reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Prediction:
        """Classify `images`, (B, C, H, W) in [0, 1]."""
        if images.shape[1:] != self.shape:  # one channel would broadcast to three
            raise ValueError(f"images of shape {tuple(images.shape)}: this model takes (B, {str(self.shape)[1:]}")
        embedding = self.encoder((images - self.mean) / self.std)
        return Prediction(self.head(embedding), embedding)


def build_model(
    architecture: str,
    *,
    shape: tuple[int, int, int],
    classes: int,
    embedding_size: int,
    mean: Tensor,
    std: Tensor,
    seed: int,
) -> Classifier:
    """A new model on the CPU; the same arguments give the same weights, and no other random number changes.

    Args:
        architecture: `cnn`, `mlp` or `resnet18`.
        shape: (C, H, W) of one image.
        classes: K.
        embedding_size: D.
        mean: (C,) of the training images, subtracted inside the model; pixel units of [0, 1].
        std: (C,) of the training images, above 0; divided by inside the model.
        seed: Decides the initial weights.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture = {architecture!r}: {did_you_mean(architecture, ARCHITECTURES)}")
    if mean.shape != shape[:1] or std.shape != shape[:1] or not (std > 0).all():
        raise ValueError(f"mean {mean.tolist()} and std {std.tolist()}: one each for {shape[0]} channels, std above 0")
    encoder = {"cnn": cnn_encoder, "mlp": mlp_encoder, "resnet18": resnet18_encoder}[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the accelerators' state too
        return Classifier(
            encoder(shape, embedding_size),
            shape=shape,
            head=nn.Linear(embedding_size, classes),
            mean=mean,
            std=std,
        )


def cnn_encoder(shape: tuple[int, int, int], embedding_size: int) -> nn.Module:
    """The network of arXiv 2211.02468, for any number of channels, image size and embedding size.

    Its convolutions are not padded: 28x28 shrinks to 24, 12, 8, 4, and with D = 4 and K = 10 it has 381,370 parameters.
    Images of less than 16 pixels a side would shrink to nothing, so theirs are padded by 2: 8x8 goes 8, 4, 4, 2.
    """
    channels, height, width = shape
    padding = 0 if min(height, width) >= 16 else 2
    rows, columns = (((side - 4 + 2 * padding) // 2 - 4 + 2 * padding) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=padding),
        nn.PReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=padding),
        nn.PReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * rows * columns, HIDDEN),
        nn.PReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.PReLU(),
        nn.Linear(HIDDEN, embedding_size),
    )


def mlp_encoder(shape: tuple[int, int, int], embedding_size: int) -> nn.Module:
    """Two hidden layers."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, embedding_size),
    )


def resnet18_encoder(shape: tuple[int, int, int], embedding_size: int) -> nn.Module:
    """ResNet-18 for small images (He et al. 2016, section 4.2): a 3x3 stem of stride 1 and no pooling behind it."""
    from torchvision.models import resnet18  # takes seconds to import, and the other models do without

    network = resnet18(num_classes=embedding_size)
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    return network
