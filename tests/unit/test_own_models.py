"""Networks of one's own: built, looked at, trained, resumed, packed or not; and what is said of wrong ones."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.quick_judge import prepare_quickly
from trainer import plugins
from trainer.config import EvaluationConfig, TrialConfig, check_packable
from trainer.errors import InputError
from trainer.files import FolderStore
from trainer.invariance import Prepared
from trainer.own_models import OwnClassifier, build_network, why_alone
from trainer.report import EpochReport
from trainer.training import MODEL_FILE, Pack, load_model, run_trial

NETS = """
import torch
from torch import nn
from torch.nn import functional as F


class Both(nn.Module):
    def __init__(self, classes, size):
        super().__init__()
        self.first, self.last = nn.Linear(64, size), nn.Linear(size, classes)

    def forward(self, images):
        embedding = F.relu(self.first(images.flatten(1)))
        return self.last(embedding), embedding


def both(shape, classes, embedding_size):
    return Both(classes, embedding_size)


def plain(shape, classes, embedding_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, embedding_size), nn.ReLU(), nn.Linear(embedding_size, classes))


def normalised(shape, classes, embedding_size):
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(features, nn.Linear(144, embedding_size), nn.Linear(embedding_size, classes))


def dropout(shape, classes, embedding_size):
    features = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, embedding_size))
    return nn.Sequential(features, nn.Linear(embedding_size, classes))
"""
EVALUATION = EvaluationConfig(
    eval_sensitivity_steps=2, eval_final_steps=0, train_size=200, validation_size=60, eval_invariance_size=60
)
SHORT = {"epochs": 3, "batch_size": 50, "embedding_size": 6, "sensitivity_ce_weight": 1.0, "sensitivity_steps": 2}
SIZES = {"shape": (1, 8, 8), "classes": 10, "embedding_size": 6, "mean": torch.zeros(1), "std": torch.ones(1)}


@pytest.fixture(autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "own_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    monkeypatch.setattr(plugins, "_allowed", None)
    return folder


def build(name: str, seed: int = 0) -> OwnClassifier:
    model = build_network(f"python:own_nets:{name}", **SIZES, seed=seed)
    assert isinstance(model, OwnClassifier)
    return model


def reports(name: str, prepared: Prepared, **options: object) -> list[EpochReport]:
    config = TrialConfig(architecture=f"python:own_nets:{name}", **SHORT)
    return list(run_trial(config, prepared.evaluation, prepared, **options))  # type: ignore[arg-type]


def numbers(found: list[EpochReport]) -> list[tuple]:
    return [(each.epoch, each.clean_accuracy, each.sensitivity_accuracy, each.terms["loss/clean_ce"]) for each in found]


# What a network becomes


def test_the_layer_before_the_logits_is_found() -> None:
    """A network that returns logits alone is split there, and computes what it computed."""
    images = torch.rand(5, 1, 8, 8)
    model = build("plain").eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = sys.modules["own_nets"].plain((1, 8, 8), 10, 6)
    torch.testing.assert_close(model(images).logits, network(images))
    torch.testing.assert_close(model(images).embedding, network[:-1](images))
    both = build("both")(images)
    assert (both.logits.shape, both.embedding.shape) == ((5, 10), (5, 6))


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (build("both", seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.first.weight"], other["network.first.weight"])


@pytest.mark.parametrize(
    ("name", "mode_matters", "draws"),
    [("plain", False, False), ("both", False, False), ("normalised", True, False), ("dropout", True, True)],
)
def test_how_training_differs_from_evaluation_is_seen(name: str, mode_matters: bool, draws: bool) -> None:
    model = build(name)
    assert (model.mode_matters, model.draws) == (mode_matters, draws)
    assert bool(why_alone(model)) == mode_matters


@pytest.mark.parametrize("name", ["plain", "normalised", "dropout"])
def test_a_resumed_trial_gives_the_same_bits(name: str, own_prepared: Prepared, tmp_path: Path) -> None:
    whole = reports(name, own_prepared)
    torch.manual_seed(5)  # no global random state decides anything
    store, begun = FolderStore(tmp_path), []
    config = TrialConfig(architecture=f"python:own_nets:{name}", **SHORT)
    for report in run_trial(config, own_prepared.evaluation, own_prepared, store=store):
        begun.append(report)
        break
    resumed = reports(name, own_prepared, store=store)
    assert numbers(resumed) == numbers(whole)
    model = load_model(tmp_path / MODEL_FILE, architecture=config.architecture)
    assert model(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)


def test_a_model_file_alone_imports_nothing(own_prepared: Prepared, tmp_path: Path) -> None:
    reports("plain", own_prepared, store=FolderStore(tmp_path))
    for name in ("", "python:own_nets:both"):
        with pytest.raises(InputError, match=r"'python:own_nets:plain', which is not imported because a file names it"):
            load_model(tmp_path / MODEL_FILE, architecture=name)


def test_in_a_pack_a_network_is_stacked_if_it_can_be_and_else_trains_alone(own_prepared: Prepared) -> None:
    pack, warnings = Pack(own_prepared.evaluation, own_prepared), []
    names = ("plain", "dropout")
    configs = [TrialConfig(architecture=f"python:own_nets:{name}", **SHORT) for name in names]
    trials = [pack.join(config, warn=warnings.append) for config in configs]
    for config in configs:
        check_packable(config)
    assert [trial.alone for trial in trials] == [False, True]
    assert len(warnings) == 1
    assert "trains alone, not in the pack's vectorised step: it answers otherwise in training" in warnings[0]
    packed = [pack.advance(trials) for _ in range(SHORT["epochs"] + 1)]
    for trial, name in zip(trials, names, strict=True):
        got = [report for each in packed if isinstance(report := each[trial], EpochReport)]
        expected = reports(name, own_prepared)
        assert [each.epoch for each in got] == [each.epoch for each in expected]
        assert abs(got[0].terms["loss/clean_ce"] - expected[0].terms["loss/clean_ce"]) < 1e-4


@pytest.fixture(scope="module")
def own_prepared(cache_dir: Path) -> Prepared:
    return prepare_quickly(EVALUATION, cache_dir)


# What is said of wrong ones

LAYERS = "nn.Flatten(), nn.Linear(64, 6)"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 5", "returned int, must return a torch.nn.Module"),
        ("raise OSError('no weights here')", "raised OSError: no weights here"),
        ("return SHARED", "returned the same weights twice"),
        (f"return nn.Sequential({LAYERS}, nn.Linear(6, 10), Noise())", "otherwise to the same images in evaluation"),
        (f"return nn.Sequential({LAYERS}, nn.Linear(6, 9))", "returns (4, 9), must return logits (4, 10)"),
        (f"return nn.Sequential({LAYERS}, nn.Linear(6, 10), nn.Softmax(1))", "its logits come from no linear layer"),
        (f"return nn.Sequential({LAYERS}, nn.Linear(6, 10), Twice(nn.Softmax(1)))", "returns probabilities"),
        ("return nn.Flatten()", "has no weights to train"),
        ("return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))", "fails on images (4, 1, 8, 8): RuntimeError"),
        (f"return nn.Sequential({LAYERS}, nn.Linear(6, 10), Pair(1))", "an embedding (4, 1), must return (4, 10) and"),
        (f"return nn.Sequential({LAYERS}, nn.Linear(6, 10)).double()", "fails on images (4, 1, 8, 8): RuntimeError"),
        (f"return nn.Sequential(Detached(), {LAYERS}, nn.Linear(6, 10))", "has no finite gradient"),
        (f"return nn.Sequential({LAYERS}, OTHERS, nn.Linear(6, 10))", "batch normalisation needs its running"),
        (f"return nn.Sequential({LAYERS}, Words())", "its network returns str, must return logits"),
        ("return nn.Sequential(nn.Flatten(), filled(next(COUNT)))", "made other weights with the same seed"),
    ],
)  # fmt: skip
def test_a_wrong_network_is_refused_in_one_line(body: str, message: str, nets: Path) -> None:
    helpers = """
    import itertools
    import torch
    from torch import nn
    SHARED = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    COUNT = itertools.count()
    OTHERS = nn.BatchNorm1d(6, track_running_stats=False, affine=False)
    def filled(value):
        layer = nn.Linear(64, 10)
        nn.init.constant_(layer.weight, value)
        return layer
    class Noise(nn.Module):
        def forward(self, x): return x + torch.rand_like(x), x
    class Twice(nn.Module):
        def __init__(self, inner): super().__init__(); self.inner = inner
        def forward(self, x): return self.inner(x), x
    class Pair(nn.Module):
        def __init__(self, width): super().__init__(); self.width = width
        def forward(self, x): return x, x[:, : self.width]
    class Detached(nn.Module):
        def forward(self, x): return x.detach()
    class Words(nn.Module):
        def forward(self, x): return "logits"
    def make(shape, classes, embedding_size):
    """
    (nets / "own_wrong.py").write_text(textwrap.dedent(helpers) + f"    {body}\n")
    sys.modules.pop("own_wrong", None)
    with pytest.raises(InputError) as raised:
        build_network("python:own_wrong:make", **SIZES, seed=0)
    assert str(raised.value).startswith("architecture = 'python:own_wrong:make': ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_certified_training_refuses_a_network_whose_bounds_nobody_knows() -> None:
    with pytest.raises(InputError, match=r"can't be trained by certified_ce_weight \(.*or not known\)"):
        TrialConfig(architecture="python:own_nets:plain", certified_ce_weight=0.5)


def test_a_layer_is_no_network_of_its_own() -> None:
    assert why_alone(nn.Linear(2, 2)) == ""
