"""Training attacks of one's own, and the properties that they share with the one built in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from search_spaces.reading import space_from_yaml
from search_spaces.yaml_file import parse_yaml
from sweep.audit.finalists import effective
from sweep.cli.commands import main
from sweep.plan.from_options import make_plan
from sweep.plan.plugins import own_corners, plugins_of
from tests.support.quick_judge import prepare_quickly
from trainer import plugins
from trainer.config import EvaluationConfig, TrialConfig
from trainer.errors import InputError
from trainer.files import FolderStore
from trainer.invariance import Prepared
from trainer.report import EpochReport
from trainer.training import Pack, check_attack, run_trial, structure
from trainer.training.own_attacks import why_attack_alone

SHAPE = {"shape": (1, 8, 8), "classes": 10}
SIGNED = """
import torch
from torch.nn import functional as F


def signed(model, images, labels, *, epsilon, steps, step_size, norm, random, knobs):
    perturbed = (images + knobs["own_b"] * (2 * random(images.shape) - 1) * epsilon).clamp(0, 1)
    for _ in range(steps):
        perturbed.requires_grad_()
        loss = F.cross_entropy(model(perturbed), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, perturbed)
        moved = perturbed.detach() + step_size * gradient.sign()
        perturbed = (images + (moved - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    return perturbed


signed.knobs = {"own_b": (0.0, 1.0)}
signed.per_image = True
"""
PULL = """
def pull(anchors, clean, *, cost, knobs):
    return 0 * anchors.points.sum()


pull.knobs = {"own_b": (0.0, 2.0)}
"""


def config(name: str = "python:own_attacks:signed", **settings: float | str) -> TrialConfig:
    weights = {"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0}
    return TrialConfig(**{**weights, "sensitivity_attack": name, "own_b": 1.0, **settings})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_attacks.py").write_text(SIGNED + PULL)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_attacks", "own_wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(plugins, "_allowed", None)
    return tmp_path


def wrong(folder: Path, body: str, *, per_image: bool = False) -> str:
    """Write an attack and return its name; `near` is what a right one of no steps returns."""
    head = "import torch\ndef wrong(model, images, labels, *, epsilon, steps, step_size, norm, random, knobs):\n"
    near = "    near = (images + (2 * random(images.shape) - 1) * epsilon).clamp(0, 1)\n"
    (folder / "own_wrong.py").write_text(f"{head}{near}    {body}\nwrong.per_image = {per_image}\n")
    return "python:own_wrong:wrong"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"sensitivity_steps": 1}, {"sensitivity_objective": "kl"}, {"sensitivity_objective": "transport"}],
    ids=["pgd", "fgsm", "kl", "transport"],
)
def test_those_built_in_have_every_property(settings: dict, norm: str) -> None:
    check_attack(config("pgd", own_b=0.0, sensitivity_norm=norm, **settings))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 9)])
def test_ones_own_has_every_property_at_every_budget(shape: tuple[int, int, int], folder: Path) -> None:
    for epsilon in (0.0, 0.3, 1.0):
        check_attack(config(sensitivity_epsilon=epsilon), shape=shape, classes=3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return near.numpy()", "returns ndarray, must return a tensor"),
        ("return near[:, 0]", "returns (12, 8, 8) of torch.float32 on cpu, must return (12, 1, 8, 8) of torch.float32"),
        (
            "return near.double()",
            "of torch.float64 on cpu, must return (12, 1, 8, 8) of torch.float32 on cpu",
        ),
        ("return near * float('nan')", "returns numbers that are not finite"),
        ("return images - epsilon", "returns numbers from -0.1 to 0.9, must lie in [0, 1]"),
        (
            "return (images + 2 * epsilon).clamp(0, 1)",
            "moves an image by 0.2 (linf), must move it by at most 0.1 (",
        ),
        ("return images.mul_(0.99)", "changes its images in place"),
        ("labels.add_(0) if labels.sum() % 2 else labels.zero_(); return near", "changes its inputs"),
        ("return torch.where(torch.rand(12, 1, 1, 1) < 0.5, near, images)", "something else for the same batch"),
        ("torch.rand(()); return near", "draws from the global random generator"),
        ("return images.nothing", "raised AttributeError: 'Tensor' object has no attribute 'nothing'"),
        ("return model(images.flatten(1))", "raised "),
        ("raise SystemExit('bye')", "raised SystemExit: bye"),
        ("raise ValueError('first\\nsecond')", "raised ValueError: first"),
    ],
)
def test_a_wrong_one_is_refused_with_the_property_that_it_lacks(body: str, message: str, folder: Path) -> None:
    name = wrong(folder, body)
    with pytest.raises(InputError) as raised:
        check_attack(config(name, own_b=0.0))
    assert str(raised.value).startswith(f"sensitivity_attack = '{name}': ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_l2_ball_is_held_too(folder: Path) -> None:
    name = wrong(folder, "return near")  # as far as epsilon in every pixel
    check_attack(config(name, own_b=0.0))
    with pytest.raises(InputError, match=r"moves an image by 0\.\d+ \(l2\), must move it by at most 0\.1 \(epsilon\)"):
        check_attack(config(name, own_b=0.0, sensitivity_norm="l2"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return near", ""),
        ("return near + 0 * float(epsilon)", "its attack can't have a budget for each image, (B, 1, 1, 1): "),
        ("return torch.where(torch.rand_like(images) * epsilon.mean() * 0 < 1, near, images)", "refused"),
        ("return images + (near - images) * (labels[:, None, None, None] > labels.float().mean())", "refused"),
        ("model(images[:3]); return near", "refused"),
        ("return near if epsilon.numel() == 1 else images", "its attack perturbs otherwise with a budget for each"),
    ],
)
def test_one_that_declares_per_image_is_held_to_it(body: str, reason: str, folder: Path) -> None:
    """A pack needs that an image's perturbation depends on no other image, nor on their number."""
    named = config(wrong(folder, body, per_image=True), own_b=0.0)
    if reason == "refused":
        with pytest.raises(InputError, match="per_image|global random"):
            check_attack(named)
    else:
        check_attack(named)
        found = why_attack_alone(named, **SHAPE)
        assert found == reason if not reason else found.startswith(reason)


def test_without_the_declaration_it_trains_alone(folder: Path) -> None:
    assert why_attack_alone(config(wrong(folder, "return near"), own_b=0.0), **SHAPE) == (
        "its sensitivity_attack does not declare per_image"
    )
    assert why_attack_alone(config("pgd"), **SHAPE) == ""
    assert why_attack_alone(config().replace(sensitivity_ce_weight=0.0), **SHAPE) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own_b": 1.5}, "own_b = 1.5: for python:own_attacks:signed it must be at least 0 and at most 1"),
        ({"own_a": 1.0}, "own_a = 1: for python:own_attacks:signed it must be 0, as no such knob is declared"),
        (
            {"regularizer": "python:own_attacks:pull"},
            "own_b: python:own_attacks:pull and python:own_attacks:signed both declare it, must be declared by one of "
            "them",
        ),
    ],
)
def test_its_knobs_are_those_that_it_declares(settings: dict, message: str, folder: Path) -> None:
    with pytest.raises(InputError) as raised:
        check_attack(config(**settings))
    assert str(raised.value) == message


def test_a_plan_names_it_and_sends_its_module(folder: Path, tmp_path: Path) -> None:
    text = b"""
    evaluation: {dataset: digits}
    space:
      sensitivity_ce_weight: 1.0
      sensitivity_attack: {choices: [pgd, "python:own_attacks:signed"]}
      own_b: {low: 0.1, high: 1.0, when: {sensitivity_attack: "python:own_attacks:signed"}}
    """
    space = space_from_yaml(parse_yaml(text, "test"), name="test")
    plan = make_plan(space, name="test", storage=str(tmp_path), trials=4)
    assert plugins_of(plan) == ["python:own_attacks:signed"]
    assert [corner.get("own_b", 0) for corner in own_corners(space)] == [
        0,
        0.1,
        1.0,
    ]  # what is checked before the sweep


def test_a_wrong_one_is_refused_before_anything_is_prepared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTSWEEP_STORAGE", str(tmp_path / "storage"))
    name = wrong(folder, "return near.numpy()")
    settings = (f"sensitivity_attack={name}", "sensitivity_ce_weight=1")
    assert main(["trial", *(word for setting in settings for word in ("--set", setting))]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"sensitivity_attack = '{name}': returns ndarray, must return a tensor" in said
    assert not (tmp_path / "storage" / "cache" / "prepared").exists()


def test_what_it_does_not_read_is_no_part_of_its_experiment() -> None:
    own = effective(config().to_dict())
    assert own["sensitivity_attack"] == "python:own_attacks:signed"
    assert (own["own_b"], "sensitivity_objective" in own) == (1.0, False)
    assert "sensitivity_attack" not in effective({**config().to_dict(), "sensitivity_ce_weight": 0.0})
    assert "own_b" not in effective(config("pgd").to_dict())
    unused = config().replace(sensitivity_ce_weight=0.0)
    assert structure(unused) == structure(unused.replace(sensitivity_attack="pgd"))
    assert structure(config()) != structure(config(sensitivity_steps=3))  # a stack makes equally many steps


# Trained

EVALUATION = EvaluationConfig(
    eval_sensitivity_steps=2, eval_final_steps=0, train_size=200, validation_size=60, eval_invariance_size=60
)
SHORT = {"epochs": 2, "batch_size": 50, "embedding_size": 6, "architecture": "mlp", "sensitivity_steps": 2}


@pytest.fixture(scope="module")
def own_prepared(cache_dir: Path) -> Prepared:
    return prepare_quickly(EVALUATION, cache_dir)


def numbers(reports: list[EpochReport]) -> list[tuple]:
    return [
        (each.epoch, each.clean_accuracy, each.sensitivity_accuracy, each.terms["loss/sensitivity_ce"])
        for each in reports
    ]


def test_the_same_steps_train_the_same_model_as_pgd(folder: Path, own_prepared: Prepared) -> None:
    own, built_in = (
        numbers(list(run_trial(config(name, own_b=own_b, **SHORT), EVALUATION, own_prepared)))
        for name, own_b in (("python:own_attacks:signed", 1.0), ("pgd", 0.0))
    )
    assert own == built_in


def test_a_resumed_trial_gives_the_same_bits(folder: Path, own_prepared: Prepared, tmp_path: Path) -> None:
    whole = numbers(list(run_trial(config(**SHORT), EVALUATION, own_prepared)))
    store = FolderStore(tmp_path / "trial")
    next(run_trial(config(**SHORT), EVALUATION, own_prepared, store=store))
    torch.manual_seed(5)  # no global random state decides anything
    assert numbers(list(run_trial(config(**SHORT), EVALUATION, own_prepared, store=store))) == whole


def test_a_pack_trains_as_alone_and_says_which_trial_it_does_not_stack(folder: Path, own_prepared: Prepared) -> None:
    configs = [
        config(**SHORT),
        config(**SHORT, own_b=0.5, sensitivity_epsilon=0.3, seed=1),
        config(wrong(folder, "return near"), own_b=0.0, **SHORT),
    ]
    pack, warnings = Pack(EVALUATION, own_prepared), []
    trials = [pack.join(each, warn=warnings.append) for each in configs]
    assert [trial.alone for trial in trials] == [False, False, True]
    assert warnings == [
        "trains alone, not in the pack's vectorised step: its sensitivity_attack does not declare per_image"
    ]
    packed = [pack.advance(trials) for _ in range(SHORT["epochs"])]
    for trial, each in zip(trials, configs, strict=True):
        expected = list(run_trial(each, EVALUATION, own_prepared))
        for outcomes, report in zip(packed, expected, strict=False):
            got = outcomes[trial]
            assert isinstance(got, EpochReport)
            assert abs(got.terms["loss/sensitivity_ce"] - report.terms["loss/sensitivity_ce"]) < 1e-4


def test_one_that_fails_later_fails_only_the_trials_that_have_it(folder: Path, own_prepared: Prepared) -> None:
    """The check's batch has 12 images, and training's 50."""
    name = wrong(folder, "return near if len(images) <= 24 else near + 1", per_image=True)
    pack = Pack(EVALUATION, own_prepared)
    bad, good = pack.join(config(name, own_b=0.0, **SHORT)), pack.join(config(**SHORT))
    outcomes = pack.advance([bad, good])
    assert isinstance(outcomes[good], EpochReport)
    assert "must lie in [0, 1]" in str(outcomes[bad])
    with pytest.raises(InputError, match=r"own_wrong:wrong': returns numbers from 1 to 2, must lie in \[0, 1\]"):
        list(run_trial(config(name, own_b=0.0, **SHORT), EVALUATION, own_prepared))
