"""Shapes, seeds, parameter counts and behaviour of the classifiers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trainer.config import ARCHITECTURES
from trainer.errors import InputError
from trainer.models import Classifier, CnnEncoder, Prediction, build_model, pooled_prelu, transposed_convolution

DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
SHAPES = [DIGITS, MNIST, CIFAR]
SMALL = ("cnn", "mlp")


def model_of(
    architecture: str = "cnn", shape: tuple[int, int, int] = DIGITS, *, classes: int = 10, size: int = 4, seed: int = 0
) -> Classifier:
    return build_model(
        architecture,
        shape=shape,
        classes=classes,
        embedding_size=size,
        mean=torch.full(shape[:1], 0.3),
        std=torch.full(shape[:1], 0.5),
        seed=seed,
    )


def images_of(shape: tuple[int, int, int], *, count: int = 5) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=["digits", "mnist", "cifar"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predicts_logits_and_embedding(architecture: str, shape: tuple[int, int, int]) -> None:
    model = model_of(architecture, shape, classes=7, size=12).eval()
    prediction = model(images_of(shape))
    assert isinstance(prediction, Prediction)
    assert prediction.logits.shape == (5, 7)
    assert prediction.embedding.shape == (5, 12)
    assert torch.equal(prediction.logits, model.head(prediction.embedding))


# By hand, layer by layer: weights + biases (+ one slope per PReLU); the head has 10 (D + 1).
CNN_CONVOLUTIONS = (25 * 32 + 32) + (25 * 32 * 64 + 64)
CNN_MNIST = CNN_CONVOLUTIONS + (64 * 4 * 4 * 256 + 256) + (256 * 256 + 256) + (256 * 4 + 4) + 4 + 50
CNN_DIGITS = CNN_CONVOLUTIONS + (64 * 2 * 2 * 256 + 256) + (256 * 256 + 256) + (256 * 4 + 4) + 4 + 50
CNN_CIFAR = CNN_MNIST + 2 * 25 * 32 + 64 * (5 * 5 - 4 * 4) * 256
MLP_DIGITS = (64 * 256 + 256) + (256 * 256 + 256) + (256 * 4 + 4) + 50


def residual_stage(width_in: int, width: int) -> int:
    """Count two blocks of two 3x3 convolutions, each with scale and shift; a 1x1 shortcut where the width changes."""
    shortcut = width_in * width + 2 * width if width_in != width else 0
    return 9 * width_in * width + 3 * 9 * width * width + 4 * 2 * width + shortcut


RESNET = 2 * 64 + residual_stage(64, 64) + residual_stage(64, 128) + residual_stage(128, 256) + residual_stage(256, 512)
RESNET_CIFAR = 9 * 3 * 64 + RESNET + (512 * 4 + 4) + 50


@pytest.mark.parametrize(
    ("architecture", "shape", "count"),
    [
        ("cnn", MNIST, CNN_MNIST),
        ("cnn", DIGITS, CNN_DIGITS),
        ("cnn", CIFAR, CNN_CIFAR),
        ("mlp", DIGITS, MLP_DIGITS),
        ("resnet18", CIFAR, RESNET_CIFAR),
    ],
)
def test_has_as_many_parameters_as_counted_by_hand(architecture: str, shape: tuple[int, int, int], count: int) -> None:
    assert sum(p.numel() for p in model_of(architecture, shape).parameters()) == count


def test_cnn_is_the_published_network_at_28x28() -> None:
    layers = [m for m in model_of("cnn", MNIST).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [tuple(layer.weight.shape) for layer in layers] == [
        (32, 1, 5, 5),
        (64, 32, 5, 5),
        (256, 1024),
        (256, 256),
        (4, 256),
        (10, 4),
    ]
    assert sum(p.numel() for p in model_of("cnn", MNIST).parameters()) == 381_370


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_seed_alone_decides_the_weights(architecture: str) -> None:
    model = model_of(architecture, seed=3)
    torch.rand(7)
    assert same_weights(model, model_of(architecture, seed=3))
    assert not same_weights(model, model_of(architecture, seed=4))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_building_changes_no_other_random_number(architecture: str) -> None:
    before = torch.get_rng_state()
    model_of(architecture)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_building_changes_no_random_number_of_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.cuda.get_rng_state()
    model_of("cnn")
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_reaches_every_parameter_and_the_image(architecture: str) -> None:
    model = model_of(architecture, CIFAR)
    images = images_of(CIFAR).requires_grad_()
    model(images).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert images.grad is not None
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_normalisation_is_inside(architecture: str) -> None:
    """Check that a model with mean m and deviation s maps x as the plain model maps (x - m) / s."""
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    settings: dict[str, Any] = dict(shape=CIFAR, classes=10, embedding_size=4, seed=0)
    normalising = build_model(architecture, mean=mean, std=std, **settings).eval()
    plain = build_model(architecture, mean=torch.zeros(3), std=torch.ones(3), **settings).eval()
    images = images_of(CIFAR)
    by_hand = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.equal(normalising(images).logits, plain(by_hand).logits)
    assert not torch.equal(normalising(images).logits, plain(images).logits)


def test_normalisation_is_saved_but_never_trained() -> None:
    model = model_of()
    assert {"mean", "std"} <= model.state_dict().keys()
    assert not {"mean", "std"} & dict(model.named_parameters()).keys()
    other = build_model(
        "cnn", shape=DIGITS, classes=10, embedding_size=4, mean=torch.zeros(1), std=torch.ones(1), seed=9
    )
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images_of(DIGITS)).logits, model(images_of(DIGITS)).logits)


def test_does_not_share_the_statistics_it_was_given() -> None:
    mean = torch.zeros(1)
    model = build_model("mlp", shape=DIGITS, classes=10, embedding_size=4, mean=mean, std=torch.ones(1), seed=0)
    before = model(images_of(DIGITS)).logits
    mean += 1
    assert torch.equal(model(images_of(DIGITS)).logits, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eval_mode_judges_each_image_alone(architecture: str) -> None:
    model = model_of(architecture).eval()
    images = images_of(DIGITS)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    together = model(images).logits
    one_by_one = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())


def test_resnet18_batch_norm_follows_the_mode() -> None:
    model, images = model_of("resnet18", CIFAR), images_of(CIFAR)
    state = copy.deepcopy(model.state_dict())
    running = [name for name in state if name.endswith(("running_mean", "running_var"))]
    model.eval()(images)
    assert all(torch.equal(state[name], model.state_dict()[name]) for name in running)
    model.train()(images)
    assert not any(torch.equal(state[name], model.state_dict()[name]) for name in running)


@pytest.mark.parametrize("architecture", SMALL)
def test_models_stack_under_vmap(architecture: str) -> None:
    """Check that several models in one vectorised call give what each gives alone, gradients too."""
    models = [model_of(architecture, seed=seed) for seed in range(3)]
    images = images_of(DIGITS)
    parameters, buffers = torch.func.stack_module_state(models)  # type: ignore[arg-type]

    def loss(parameters: dict, buffers: dict) -> torch.Tensor:
        logits, embedding = torch.func.functional_call(models[0], (parameters, buffers), (images,))
        return logits.square().mean() + embedding.norm(dim=1).mean()

    gradients = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    for index, model in enumerate(models):
        alone = torch.func.grad(loss)(dict(model.named_parameters()), dict(model.named_buffers()))
        for name, gradient in alone.items():
            torch.testing.assert_close(gradients[name][index], gradient, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------- the operations that suit a CPU


def with_slopes(model: Classifier, slope: float) -> Classifier:
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            nn.init.constant_(module.weight, slope)
    return model


def lean(model: Classifier) -> Classifier:
    assert isinstance(model.encoder, CnnEncoder)
    model.encoder.lean = True
    return model


def predicted_with_gradients(model: Classifier, images: torch.Tensor) -> list[torch.Tensor]:
    images = images.clone().requires_grad_()
    logits, embedding = model(images)
    loss = logits.square().sum() + embedding.norm(dim=1).sum()
    return [logits, embedding, *torch.autograd.grad(loss, [images, *model.parameters()])]


@pytest.mark.parametrize("slope", [0.25, 0.0, -0.3, 1.5])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 17, 19)], ids=["digits", "mnist", "cifar", "odd"])
def test_lean_and_plain_are_one_function(shape: tuple[int, int, int], slope: float) -> None:
    images = images_of(shape)
    found = predicted_with_gradients(lean(with_slopes(model_of("cnn", shape), slope)), images)
    expected = predicted_with_gradients(with_slopes(model_of("cnn", shape), slope), images)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("slope", [0.25, 2.0, 0.0, -0.5])
def test_pooling_first_gives_the_same_bits(slope: float, frozen: bool) -> None:
    """Draw whole numbers, so that sums are exact in any order, and few, so that most windows hold equal maxima."""
    generator = torch.Generator().manual_seed(0)
    prelu = nn.PReLU(init=slope).requires_grad_(not frozen)
    values, gradient = (
        torch.randint(-2, 3, size, generator=generator).float() for size in ((4, 3, 7, 6), (4, 3, 3, 3))
    )

    def outcome(pooled: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        features = values.clone().requires_grad_()
        result = pooled(features)
        return [result, *torch.autograd.grad(result, [features, *(p for p in [prelu.weight] if not frozen)], gradient)]

    ours = outcome(lambda features: pooled_prelu(features, prelu))
    theirs = outcome(lambda features: nn.functional.max_pool2d(prelu(features), 2))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [0, 2])
def test_transposed_convolution_is_the_librarys(channels: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features, weight = (torch.randn(size, generator=generator) for size in ((3, 8, 6, 7), (8, channels, 5, 5)))
    expected = nn.functional.conv_transpose2d(features, weight, padding=padding)
    torch.testing.assert_close(transposed_convolution(features, weight, padding=padding), expected)


def test_unknown_architecture_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"architecture = 'resnet': did you mean 'resnet18'\? known: cnn, mlp, resnet18"
    ):
        model_of("resnet")


def test_image_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 1, 32, 32\): this model takes \(B, 3, 32, 32\)"):
        model_of("cnn", CIFAR)(images_of((1, 32, 32)))


@pytest.mark.parametrize(("mean", "std"), [([0.1], [1.0, 1, 1]), ([0.1] * 3, [1.0]), ([0.1] * 3, [1.0, 0, 1])])
def test_statistics_must_fit_the_channels(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match="one each for 3 channels, std above 0"):
        build_model(
            "cnn",
            shape=CIFAR,
            classes=10,
            embedding_size=4,
            mean=torch.tensor(mean),
            std=torch.tensor(std),
            seed=0,
        )
