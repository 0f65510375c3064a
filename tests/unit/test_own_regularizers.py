"""Regularisers of one's own, and the properties that they share with those built in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from trainer import plugins
from trainer.config import REGULARIZERS, TrialConfig
from trainer.errors import InputError
from trainer.objective.own import check_regularizer, why_regularizer_alone
from trainer.objective.regularizers import Embedded, regularizer

PULL = """
import torch


def pull(anchors, clean, *, cost, knobs):
    between = torch.diagonal(cost(anchors.points, clean.points))
    keep = torch.ones_like(between) if anchors.keep is None else anchors.keep.to(between.dtype)
    return (knobs["own_a"] * between * keep).sum() / keep.sum().clamp(min=1)


pull.knobs = {"own_a": (0.0, 2.0)}
"""


def config(name: str = "python:own_terms:pull", **settings: float | str) -> TrialConfig:
    return TrialConfig(regularizer=name, sensitivity_weight=1.0, **settings)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_terms.py").write_text(PULL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_terms", raising=False)
    monkeypatch.setattr(plugins, "_allowed", None)
    return tmp_path


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("name", REGULARIZERS[1:])
def test_those_built_in_have_every_property(name: str, metric: str) -> None:
    check_regularizer(config(name, ground_metric=metric))


def test_ones_own_is_called_with_both_sides_and_its_knobs(folder: Path) -> None:
    check_regularizer(config(own_a=1.5))
    generator = torch.Generator().manual_seed(0)
    sides = [Embedded(torch.randn(6, 4, generator=generator), torch.arange(6) % 3) for _ in range(2)]
    value = regularizer("python:own_terms:pull", *sides, classes=3, own={"own_a": torch.tensor(1.5)}).value
    expected = 1.5 * (1 - torch.cosine_similarity(sides[0].points, sides[1].points)).mean()
    torch.testing.assert_close(value, expected)


def test_one_that_vmap_can_vectorise_is_packed_and_another_is_not(folder: Path) -> None:
    assert why_regularizer_alone(config(own_a=1.0)) == ""
    (folder / "own_alone.py").write_text(
        PULL.replace("    between", "    assert anchors.points.sum().item() != 99\n    between", 1)
    )
    assert "torch.vmap can't vectorise its regularizer" in why_regularizer_alone(config("python:own_alone:pull"))
    assert why_regularizer_alone(config("ot_triplet")) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own_a": 2.5}, "own_a = 2.5: for python:own_terms:pull it must be at least 0 and at most 2"),
        ({"own_b": 1.0}, "own_b = 1: for python:own_terms:pull it must be 0, as no such knob is declared"),
    ],
)
def test_a_knob_outside_its_declared_range_is_refused(settings: dict, message: str, folder: Path) -> None:
    with pytest.raises(InputError) as raised:
        check_regularizer(config(**settings))
    assert str(raised.value) == message


MEAN = "(knobs['own_a'] + 1) * (anchors.points - clean.points).pow(2)"
KEPT = f"({MEAN} * anchors.keep[:, None]).sum()"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1.0", "returns float, must return one number"),
        ("return anchors.points.sum(1)", "returns (12,), must return one number"),
        (f"return -{KEPT}", "must be finite and at least 0"),
        ("return anchors.points.sum() * float('nan')", "is nan, must be finite"),
        (f"return {KEPT}.detach()", "has no gradient"),
        (f"return ({KEPT}).sqrt()", "has a gradient that is not finite where anchors and clean images are the same"),
        (f"return {MEAN}.mean()", "depends on images that are left out"),
        ("return (anchors.points[0] * anchors.keep[0]).pow(2).sum()", "depends on the order of the images"),
        (f"return {KEPT} * torch.rand(())", "gives something else for the same batch"),
        (f"torch.rand(()); return {KEPT}", "draws from the global random generator"),
        (f"clean.points.mul_(0.5) if not clean.points.requires_grad else None; return {KEPT}", "for the same batch"),
        (f"return {KEPT} + 1", "is 1 where no image is kept, must be 0"),
        ("return anchors.nothing", "raised AttributeError"),
        ("return {}['missing']", "raised KeyError: 'missing'"),
    ],
)
def test_a_wrong_one_is_refused_with_the_property_that_it_lacks(body: str, message: str, folder: Path) -> None:
    (folder / "own_wrong.py").write_text(f"import torch\ndef wrong(anchors, clean, *, cost, knobs):\n    {body}\n")
    sys.modules.pop("own_wrong", None)
    with pytest.raises(InputError) as raised:
        check_regularizer(config("python:own_wrong:wrong"))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ("5", "its knobs are 5, must be a dict such as {'own_a': (0.0, 2.0)}"),
        ("{'own_a': 2}", "must be a dict such as"),
        ("{'own_a': (2, 1)}", "its knobs are {'own_a': (2, 1)}, must be a dict such as"),
        ("{'own_a': (float('nan'), 1)}", "its knobs are {'own_a': (nan, 1)}, must be a dict such as"),
        ("{'strength': (0, 1)}", "declares 'strength', must be one of"),
    ],
)
def test_a_wrong_declaration_is_refused(knobs: str, message: str, folder: Path) -> None:
    (folder / "own_declared.py").write_text(PULL.replace('{"own_a": (0.0, 2.0)}', knobs))
    sys.modules.pop("own_declared", None)
    with pytest.raises(InputError) as raised:
        check_regularizer(config("python:own_declared:pull"))
    assert message in str(raised.value)
