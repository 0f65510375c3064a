"""Networks of one's own, `architecture: python:MODULE:FACTORY`, as models like the others; README.md has an example.

A network is looked at before it trains: what it returns, whether it is deterministic where it must be, and how its
training differs from its evaluation. What can't be handled is refused with the reason.

Shape letters: B images of a batch, C channels, H rows, W columns, K classes, D embedding size.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import InputError
from trainer.models import ImageModel, Prediction, build_model
from trainer.plugins import call_plugin, is_plugin, load_plugin

_BATCH = 4
"""Images that a new network is tried on."""


class OwnClassifier(ImageModel):
    """A network of one's own, with normalisation before it.

    It returns logits and embedding; or logits alone from a last linear layer, which then stands here as the head.
    """

    mode_matters: bool
    """True if it answers otherwise in training than in evaluation, as batch normalisation and dropout do."""
    draws: bool
    """True if it draws random numbers in training, as dropout does."""

    def __init__(
        self, network: nn.Module, head: nn.Linear | None, *, shape: tuple[int, int, int], mean: Tensor, std: Tensor
    ) -> None:
        super().__init__(shape=shape, mean=mean, std=std)
        self.network, self.head = network, head
        self.mode_matters = self.draws = False

    def forward(self, images: Tensor) -> Prediction:
        """Classify images (B, C, H, W) in [0, 1].

        Raises:
            ValueError: for images of another shape than the model's.
        """
        answer = self.network(self.normalised(images))
        return Prediction(*answer) if self.head is None else Prediction(self.head(answer), answer)


def build_network(
    architecture: str,
    *,
    shape: tuple[int, int, int],
    classes: int,
    embedding_size: int,
    mean: Tensor,
    std: Tensor,
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return what `build_model` does, also for a network of one's own: its factory is called as
    `factory(shape, classes, embedding_size)`.

    Args:
        weights: state dict that a network of one's own is given before it is looked at.

    Raises:
        InputError: as `build_model`; for a factory that can't be had, weights of another network, and a network that
            can't be trained or judged.
    """
    if not is_plugin(architecture):
        sizes: dict[str, Any] = {"shape": shape, "classes": classes, "embedding_size": embedding_size}
        return build_model(architecture, **sizes, mean=mean, std=std, seed=seed)

    def refused(reason: str) -> InputError:
        return InputError(f"architecture = {architecture!r}: {reason}")

    network, again = (_made(architecture, (shape, classes, embedding_size), seed) for _ in range(2))
    if not isinstance(network, nn.Module):
        raise refused(f"returned {type(network).__name__}, must return a torch.nn.Module")
    if {id(each) for each in network.parameters()} & {id(each) for each in again.parameters()}:
        raise refused("returned the same weights twice; each call must make a new network")
    ours, theirs = network.state_dict(), again.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise refused("made other weights with the same seed: draw them from torch's own generator alone")
    if not any(each.requires_grad for each in network.parameters()):
        raise refused("has no weights to train")
    try:
        if weights is not None:
            _load_weights(network, weights)
        return examined(network, shape=shape, classes=classes, mean=mean, std=std)
    except InputError as error:
        raise refused(str(error)) from None
    except Exception as error:
        raise refused(f"fails on images {(_BATCH, *shape)}: {type(error).__name__}: {error}") from error


def _made(architecture: str, sizes: tuple[Any, ...], seed: int) -> Any:
    """Return what the factory makes with a seed; the global random state stays as it is."""
    load_plugin("architecture", architecture)  # before the seed: a module may draw numbers when it is imported
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return call_plugin("architecture", architecture, *sizes)


def _load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network its weights; InputError with the first names and shapes that do not fit."""
    ours = network.state_dict()
    missing, unknown = (sorted(a.keys() - b.keys()) for a, b in ((ours, weights), (weights, ours)))
    other = [name for name in ours.keys() & weights.keys() if ours[name].shape != weights[name].shape]
    for what, names in (("lack", missing), ("have besides", unknown), ("have in another shape", sorted(other))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"the weights are of another network: they {what} {', '.join(names[:3])}{more}")
    network.load_state_dict(dict(weights))


def examined(network: nn.Module, *, shape: tuple[int, int, int], classes: int, mean: Tensor, std: Tensor) -> nn.Module:
    """Return the model of a network after a look at its answers.

    Args:
        network: takes normalised images (B, C, H, W); its last layer may be taken out, to stand as the model's head.
        shape: (C, H, W).
        classes: K.
        mean: (C,), subtracted from images in [0, 1].
        std: (C,), above 0, that they are divided by.

    Raises:
        InputError: with the reason why it can't be trained or judged.
    """
    images = torch.rand(_BATCH, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head = _last_layer(network.eval(), images, classes)
    model = OwnClassifier(network, head, shape=shape, mean=mean, std=std).eval()
    logits, embedding = model(images)
    _check_answer(logits, embedding, classes)
    (gradient,) = torch.autograd.grad(logits.sum() + embedding.sum(), images, allow_unused=True)
    if gradient is None or not gradient.isfinite().all():
        raise InputError("has no finite gradient with respect to the images, which attacks climb")
    with torch.no_grad():
        if not torch.equal(model(images).logits, logits):
            raise InputError("answers otherwise to the same images in evaluation mode, so that nothing can judge it")
        apart = torch.cat([model(part).logits for part in images.split(_BATCH // 2)])
        if not torch.allclose(apart, logits, rtol=1e-3, atol=1e-4):
            raise InputError(
                "answers otherwise to an image among others in evaluation mode: batch normalisation needs "
                "its running statistics"
            )
        first, second = (_trained_answer(model, images, seed) for seed in (0, 1))
    model.draws = not torch.equal(first, second)
    model.mode_matters = not torch.allclose(first, logits, rtol=1e-3, atol=1e-4)
    return model.train()


def _last_layer(network: nn.Module, images: Tensor, classes: int) -> nn.Linear | None:
    """Take the linear layer that makes the logits out of a network and return it; None if the network returns its
    embedding itself.

    Raises:
        InputError: if the network returns logits alone, and no such layer makes them.
    """
    made: list[tuple[str, Tensor]] = []

    def recorder(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda layer, given, output: made.append((name, output))

    hooks = [
        layer.register_forward_hook(recorder(name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and name
    ]
    answer = network(images)
    for hook in hooks:
        hook.remove()
    if isinstance(answer, tuple) and len(answer) == 2:
        return None
    if not isinstance(answer, Tensor):
        raise InputError(f"its network returns {type(answer).__name__}, must return logits, or logits and embedding")
    if answer.shape != (len(images), classes):
        raise InputError(f"its network returns {tuple(answer.shape)}, must return logits {(len(images), classes)}")
    found = [name for name, output in made if output is answer]
    if not found or [name for name, _ in made].count(found[0]) > 1:
        raise InputError(
            "its logits come from no linear layer of their own, so that it must return the embedding too: "
            "return logits, embedding"
        )
    parent, _, name = found[0].rpartition(".")
    owner = network.get_submodule(parent)
    head = getattr(owner, name)
    setattr(owner, name, nn.Identity())
    return head


def _check_answer(logits: Tensor, embedding: Tensor, classes: int) -> None:
    """Raise InputError for an answer of the wrong shape or type, or of probabilities."""
    if not (isinstance(logits, Tensor) and isinstance(embedding, Tensor)):
        raise InputError("must return tensors: logits, embedding")
    if logits.shape != (_BATCH, classes) or embedding.ndim != 2 or len(embedding) != _BATCH or embedding.shape[1] < 2:
        raise InputError(
            f"its network returns logits {tuple(logits.shape)} and an embedding {tuple(embedding.shape)}, must return "
            f"{(_BATCH, classes)} and ({_BATCH}, D) with D of at least 2"
        )
    if logits.dtype != torch.float32 or not logits.isfinite().all() or not embedding.isfinite().all():
        raise InputError(f"its answers are not all finite float32 numbers (logits: {logits.dtype})")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones(_BATCH)):
        raise InputError("returns probabilities, must return logits: leave the softmax out")


def _trained_answer(model: nn.Module, images: Tensor, seed: int) -> Tensor:
    """Return the logits in training mode, of a copy, with a seed for what it draws."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return copy.deepcopy(model).train()(images).logits


@contextlib.contextmanager
def own_noise(model: nn.Module, seed: int) -> Iterator[None]:
    """Let a model that draws random numbers draw those of a seed; the global random state stays as it is."""
    if not getattr(model, "draws", False):
        yield
        return
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def why_alone(model: nn.Module) -> str:
    """Return why a model can't share a vectorised step with others; an empty text if it can."""
    if not isinstance(model, OwnClassifier):
        return ""
    if model.mode_matters:
        return "it answers otherwise in training than in evaluation, as by batch normalisation or dropout"
    images = torch.rand(_BATCH, *model.shape, generator=torch.Generator().manual_seed(0))
    images = images.to(next(model.parameters()).device)
    weights = {name: value.detach()[None] for name, value in model.named_parameters()}
    buffers = {name: value[None] for name, value in model.named_buffers()}

    def answer(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, (weights, buffers), (images,)).logits

    try:
        same = torch.allclose(torch.vmap(answer)(weights, buffers)[0], model(images).logits, rtol=1e-3, atol=1e-4)
    except Exception as error:  # noqa: BLE001 - vmap refuses in many ways what it can't vectorise
        return f"torch.vmap can't vectorise it ({str(error).splitlines()[0][:100]})"
    return "" if same else "torch.vmap computes something else"
