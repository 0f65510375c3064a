"""The classifiers: images in [0, 1] to logits and the embedding that the regularisers act on.

Shape letters: B images of a batch, C channels, H rows, W columns, K classes, D embedding size, O output channels,
k side of a filter.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from trainer.config import ARCHITECTURES
from trainer.errors import InputError
from trainer.words import did_you_mean

_HIDDEN = 256
"""Width of the dense layers."""


class Prediction(NamedTuple):
    """A model's answer to a batch."""

    logits: Tensor
    """(B, K), before the softmax."""
    embedding: Tensor
    """(B, D), the input of the linear head."""


class ImageModel(nn.Module):
    """A model of images of one shape (C, H, W), which it normalises itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, shape: tuple[int, int, int], mean: Tensor, std: Tensor):
        super().__init__()
        self.shape = shape
        self.register_buffer("mean", mean.detach().clone().reshape(-1, 1, 1))
        self.register_buffer("std", std.detach().clone().reshape(-1, 1, 1))

    def normalised(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] with mean 0 and deviation 1 over the training split.

        Raises:
            ValueError: for images of another shape than the model's.
        """
        if images.shape[1:] != self.shape:  # one channel would broadcast to three
            raise ValueError(f"images of shape {tuple(images.shape)}: this model takes (B, {str(self.shape)[1:]}")
        return (images - self.mean) / self.std


class Classifier(ImageModel):
    """A model: normalisation, encoder f, linear head g."""

    def __init__(self, encoder: nn.Module, *, shape: tuple[int, int, int], head: nn.Linear, mean: Tensor, std: Tensor):
        super().__init__(shape=shape, mean=mean, std=std)
        self.encoder = encoder
        self.head = head

    def forward(self, images: Tensor) -> Prediction:
        """Classify images (B, C, H, W) in [0, 1].

        Raises:
            ValueError: for images of another shape than the model's.
        """
        embedding = self.encoder(self.normalised(images))
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
    """Return a new model on the CPU. The same arguments give the same weights; the global random state stays as it is.

    Args:
        architecture: `cnn`, `mlp` or `resnet18`.
        shape: (C, H, W) of one image.
        classes: K.
        embedding_size: D.
        mean: (C,) of the training images, in pixel units of [0, 1]; the model subtracts it.
        std: (C,) of the training images, above 0; the model divides by it.
        seed: seed of the initial weights.

    Raises:
        InputError: for an unknown architecture, with the nearest known one.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture = {architecture!r}: {did_you_mean(architecture, ARCHITECTURES)}")
    if mean.shape != shape[:1] or std.shape != shape[:1] or not (std > 0).all():
        raise ValueError(f"mean {mean.tolist()} and std {std.tolist()}: one each for {shape[0]} channels, std above 0")
    encoder = {"cnn": _cnn_encoder, "mlp": _mlp_encoder, "resnet18": _resnet18_encoder}[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the accelerators' state too
        return Classifier(
            encoder(shape, embedding_size),
            shape=shape,
            head=nn.Linear(embedding_size, classes),
            mean=mean,
            std=std,
        )


def move_to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on the device, in the form that is fastest there."""
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # pooling is vectorised over channels that lie side by side
        for module in model.modules():
            if isinstance(module, CnnEncoder):
                module.lean = True
    return model.to(device)


def _cnn_encoder(shape: tuple[int, int, int], embedding_size: int) -> nn.Module:
    """Build the network of arXiv 2211.02468 for any number of channels, image size and embedding size.

    Its convolutions are not padded: 28x28 shrinks to 24, 12, 8, 4, and with D = 4 and K = 10 it has 381,370 parameters.
    Images of less than 16 pixels a side would shrink to nothing, so these are padded by 2: 8x8 goes 8, 4, 4, 2.
    """
    channels, height, width = shape
    padding = 0 if min(height, width) >= 16 else 2
    rows, columns = (((side - 4 + 2 * padding) // 2 - 4 + 2 * padding) // 2 for side in (height, width))
    return CnnEncoder(
        nn.Conv2d(channels, 32, 5, padding=padding),
        nn.PReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=padding),
        nn.PReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * rows * columns, _HIDDEN),
        nn.PReLU(),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.PReLU(),
        nn.Linear(_HIDDEN, embedding_size),
    )


class CnnEncoder(nn.Sequential):
    """The layers in order; or, if `lean`, the same function in operations that take a CPU half the time."""

    lean = False
    """True for these operations: on a CPU, and not under `torch.vmap`, as they branch on a parameter's value."""

    def forward(self, input: Tensor) -> Tensor:  # the name that the base class gives it
        if not (self.lean and input.is_cpu):
            return super().forward(input)
        convolution, prelu, _, second, prelu2, _, *dense = self
        features = pooled_prelu(_convolved(input, convolution), prelu)
        features = pooled_prelu(second(features), prelu2)
        for layer in dense:
            features = layer(features)
        return features


def pooled_prelu(features: Tensor, prelu: nn.Module) -> Tensor:
    """Apply PReLU, then 2x2 max pooling, to features (B, C, H, W); in the cheaper order if the slope allows it."""
    (slope,) = prelu.parameters()
    if slope <= 0:
        return F.max_pool2d(prelu(features), 2)
    return _PooledPReLU.apply(features, slope)


class _PooledPReLU(Function):
    """2x2 max pooling, then PReLU, for a slope above 0: a rising function and a maximum can change places.

    Values are the same bit for bit, at a quarter of the work. Gradients go to the first of equal maxima, as in the
    other order; only the slope's gradient is summed in another order. Only the maxima and their positions are kept.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, slope: Tensor) -> Tensor:
        pooled, positions = F.max_pool2d_with_indices(features, (2, 2))
        ctx.save_for_backward(pooled, positions)
        ctx.size, ctx.slope = features.shape, slope.item()
        return F.leaky_relu(pooled, ctx.slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pooled, positions = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)  # other layouts are slow to read
        to_pooled = torch.ops.aten.leaky_relu_backward(gradient, pooled, ctx.slope, False)
        to_slope = pooled.clamp(max=0).mul_(gradient).sum().reshape(1) if ctx.needs_input_grad[1] else None
        return F.max_unpool2d(to_pooled, positions, (2, 2), output_size=ctx.size), to_slope


def _convolved(images: Tensor, convolution: nn.Module) -> Tensor:
    """Apply the first convolution, with a faster gradient in the images than the library's.

    That gradient is a node of its own in the graph: an attack computes only it, an update everything but it.
    """
    features = convolution(images.detach())
    if not images.requires_grad:
        return features
    return _Joined.apply(features, _ImageGradient.apply(images, convolution, features.detach()))


class _ImageGradient(Function):
    """A stand-in for the features as a function of the images: its values mean nothing, its gradient is right."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, convolution: nn.Conv2d, features: Tensor) -> Tensor:
        ctx.save_for_backward(convolution.weight)
        (ctx.padding, _) = convolution.padding
        return features.new_zeros(()).expand_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        return transposed_convolution(gradient, weight, padding=ctx.padding), None, None


class _Joined(Function):
    """The identity in the first argument, with the gradient passed to both."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, stand_in: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, gradient


def transposed_convolution(features: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """Compute `F.conv_transpose2d` of stride 1 as one matrix product and a sum of its shifted planes.

    oneDNN pads the few channels of an image to a vector of 16; this takes a fifth of its time.

    Args:
        features: (B, O, H, W).
        weight: (O, C, k, k).
        padding: that of the convolution.

    Returns:
        (B, C, H + k - 1 - 2 padding, W + k - 1 - 2 padding).
    """
    (batch, _, height, width), (outputs, channels, size, _) = features.shape, weight.shape
    pixels = features.permute(0, 2, 3, 1).reshape(-1, outputs)
    planes = (weight.reshape(outputs, -1).T @ pixels.T).view(channels, size, size, batch, height, width)
    images = features.new_zeros(channels, batch, height + size - 1, width + size - 1)
    for row, column in product(range(size), range(size)):
        images[:, :, row : row + height, column : column + width] += planes[:, row, column]
    inside = slice(padding, -padding or None)
    return images[:, :, inside, inside].transpose(0, 1)


def _mlp_encoder(shape: tuple[int, int, int], embedding_size: int) -> nn.Module:
    """Build a perceptron of two hidden layers."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, embedding_size),
    )


def _resnet18_encoder(shape: tuple[int, int, int], embedding_size: int) -> nn.Module:
    """Build ResNet-18 for small images (He et al. 2016, section 4.2): a 3x3 stem of stride 1, no pooling after it."""
    from torchvision.models import resnet18  # takes seconds to import, and the other models do not need it

    network = resnet18(num_classes=embedding_size)
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    return network
