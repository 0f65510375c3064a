"""Models that somebody gives us: every form that is read, and everything that is refused before its code can run."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer import plugins
from trainer.config import EvaluationConfig, TrialConfig
from trainer.data import load_data
from trainer.errors import InputError
from trainer.files import to_bytes
from trainer.models import build_model
from trainer.training.given_models import GivenModel, read_given_model
from trainer.training.model_file import model_content

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")

NETS = """
from typing import Tuple

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(144, classes)

    def forward(self, images):
        return self.head(self.body((images - 0.3) / 0.4))


def network(shape, classes, embedding_size):
    return Net(classes)


class Writes(nn.Module):
    '''Writes a file each time that it answers, where no trace of Python is left.'''

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.layer = nn.Linear(64, 10)

    def forward(self, images):
        torch.save(images, self.path)
        return self.layer(images.flatten(1))


def map_file(images):
    if images.sum() > 0:
        images = images + torch.from_file("mapped", shared=True, size=1)
    return images.flatten(1)


class MapsAFile(nn.Module):
    '''Maps a file into memory, deep in a branch of a function.'''

    def forward(self, images):
        return map_file(images)


class RunsWhenRead(nn.Module):
    '''Writes a file while it is read.'''

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images):
        return images.flatten(1)

    @torch.jit.export
    def __getstate__(self) -> Tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: Tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)
"""
FACTORY = "python:given_nets:network"
SHAPE, CLASSES = (1, 8, 8), 10
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "given_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "given_nets", raising=False)
    monkeypatch.setattr(plugins, "_allowed", None)


@pytest.fixture
def net() -> nn.Module:
    """Return a network whose batch normalisation has seen images."""
    given_nets = importlib.import_module("given_nets")
    torch.manual_seed(0)
    network = given_nets.Net()
    network(torch.rand(50, *SHAPE))
    return network.eval()


def read(content: bytes, *, architecture: str = FACTORY, classes: int = CLASSES, **shape: tuple) -> GivenModel:
    return read_given_model(
        Path("m.pt"), content, architecture=architecture, classes=classes, **{"shape": SHAPE, **shape}
    )


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def scripted(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def traced(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, IMAGES), buffer)
    return buffer.getvalue()


def safetensors(weights: dict[str, Tensor]) -> bytes:
    header, data = {}, b""
    for name, value in weights.items():
        raw = value.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[value.dtype]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + data


FORMS: dict[str, Callable[[nn.Module], bytes]] = {
    "state dict": lambda net: saved(net.state_dict()),
    "checkpoint": lambda net: saved({"epoch": 3, "state_dict": net.state_dict()}),
    "of DataParallel": lambda net: saved({f"module.{name}": value for name, value in net.state_dict().items()}),
    "safetensors": lambda net: safetensors(net.state_dict()),
    "scripted": scripted,
    "traced": traced,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_as_the_network_that_was_saved(net: nn.Module, form: str) -> None:
    given = read(FORMS[form](net))
    torch.testing.assert_close(given.model(IMAGES).logits, net(IMAGES))
    assert not given.model.training
    images = IMAGES.clone().requires_grad_()
    given.model(images).logits.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_trials_model_is_read_without_a_factory(tmp_path: Path) -> None:
    data = load_data(EvaluationConfig(), cache_dir=tmp_path)
    mean = torch.full((1,), 0.3)
    model = build_model("mlp", shape=SHAPE, classes=10, embedding_size=8, mean=mean, std=mean, seed=1).eval()
    config = TrialConfig(architecture="mlp", embedding_size=8)
    content = to_bytes(model_content(config, data, epoch=1, weights=model.state_dict()))
    given = read(content, architecture="")
    assert given.kind == "model of a trial"
    assert torch.equal(given.model(IMAGES).logits, model(IMAGES).logits)
    with pytest.raises(InputError, match=r"takes images \(1, 8, 8\) of 10 classes; the data has \(1, 28, 28\) of 10"):
        read(content, shape=(1, 28, 28))
    own = to_bytes(model_content(TrialConfig(architecture=FACTORY), data, epoch=1, weights=model.state_dict()))
    with pytest.raises(InputError, match="is not imported because a file names it"):
        read(own, architecture="")


class _Touches:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [saved, pickle.dumps], ids=["torch.save", "pickle"])
def test_a_pickle_is_refused_before_it_can_run(tmp_path: Path, write: Callable[[object], bytes]) -> None:
    with pytest.raises(InputError, match=r"'m.pt': is a pickle .* so it is not read: save its weights") as refused:
        read(write({"state_dict": _Touches(tmp_path / "touched")}))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "touched").exists()


def test_a_whole_pickled_network_is_refused_with_its_name(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"is a pickle of more than weights \(it names given_nets.Net\)"):
        read(saved(net))


def test_an_exported_program_is_refused_since_torch_may_unpickle_it(net: nn.Module, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(net, (IMAGES,)), tmp_path / "exported.pt2")
    with pytest.raises(InputError, match="is a torch.export file, .* give TorchScript, torch.jit.trace"):
        read((tmp_path / "exported.pt2").read_bytes())


def hostile(name: str, *arguments: str) -> nn.Module:
    return getattr(importlib.import_module("given_nets"), name)(*arguments)


def test_torchscript_that_reaches_for_files_is_refused_before_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "written"
    with pytest.raises(InputError, match=r"calls aten::save, which may reach beyond its tensors"):
        read(scripted(hostile("Writes", str(path))))
    with pytest.raises(InputError, match=r"calls aten::from_file"):
        read(scripted(hostile("MapsAFile")))
    with pytest.raises(InputError, match=r"has __setstate__, which runs while the file is read"):
        read(scripted(hostile("RunsWhenRead", str(path))))
    assert not path.exists()
    assert not Path("mapped").exists()


def test_the_file_that_runs_when_read_would_do_so(tmp_path: Path) -> None:
    """The hostile file above is one: torch's own reader runs it."""
    torch.jit.load(io.BytesIO(scripted(hostile("RunsWhenRead", str(tmp_path / "written")))))
    assert (tmp_path / "written").exists()


def test_code_in_a_folder_named_data_is_looked_at_too(net: nn.Module, tmp_path: Path) -> None:
    content = io.BytesIO(scripted(net))
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("archive/code/__torch__/data/more.py", "def __setstate__(self): pass")
    with pytest.raises(InputError, match="has __setstate__"):
        read(content.getvalue())


def _bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (2**28 + 2**20))
    return content.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: b"", "is no model that can be read"),
        (lambda net: b"GIF89a", "is no model that can be read"),
        (lambda net: saved(net.state_dict())[:-200], "is damaged or cut off"),
        (lambda net: scripted(net)[:-200], "is damaged or cut off"),
        (lambda net: safetensors(net.state_dict())[:-200], "is a damaged safetensors file"),
        (lambda net: _bomb(), "unpacks to far more than it is"),
        (lambda net: saved({"epoch": 1}), "holds no state dict"),
        (lambda net: saved([1, 2]), "holds no state dict"),
        (
            lambda net: saved({"head.weight": torch.zeros(10, 144)}),
            "the weights are of another network: they lack body",
        ),
        (
            lambda net: saved({**net.state_dict(), "more": torch.zeros(1)}),
            "the weights are of another network: they have besides more",
        ),
        (
            lambda net: saved({**net.state_dict(), "head.weight": torch.zeros(3, 144)}),
            "they have in another shape head.weight",
        ),
        (lambda net: scripted(nn.Sequential(net, nn.Softmax(1))), "returns probabilities, must return logits"),
        (lambda net: scripted(nn.Conv2d(1, 4, 3)), r"must return logits|returns logits \(4, 4, 6, 6\)"),
        (lambda net: scripted(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))), r"fails on images \(1, 8, 8\)"),
        (lambda net: scripted(nn.Sequential(nn.Flatten(), nn.Linear(64, 7))), r"returns logits \(4, 7\)"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_cannot_be_judged_is_refused_in_one_line(
    net: nn.Module, make: Callable[[nn.Module], bytes], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read(make(net))
    assert str(refused.value).startswith("'m.pt': ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("architecture", ["", "cnn"])
def test_weights_need_a_factory(net: nn.Module, architecture: str) -> None:
    with pytest.raises(InputError, match="holds weights alone: name the function that makes their network"):
        read(saved(net.state_dict()), architecture=architecture)
