"""The three accuracies on models and judging sets whose answers are known in closed form."""

from __future__ import annotations

import copy
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.attacks.attack import Attack, Victim
from trainer.attacks.gradient import pgd_attack
from trainer.config import EvaluationConfig
from trainer.data.datasets import Split
from trainer.errors import TrialFailed
from trainer.invariance.perturbations import JudgingSet
from trainer.models import Prediction
from trainer.training.evaluation import Evaluation, evaluate, evaluation_attacks

CLASSES = 5


class Steps(nn.Module):
    """A model whose answer is in the first pixel: class k if that is nearest to k / (CLASSES - 1)."""

    def forward(self, images: Tensor) -> Prediction:
        value = images[:, 0, 0, :1] * (CLASSES - 1)
        return Prediction(-10 * (value - torch.arange(CLASSES)).square(), value)


class Threshold(nn.Module):
    """A model of two classes: whether the one pixel is above a half."""

    def forward(self, images: Tensor) -> Prediction:
        above = images[:, 0, 0, :1] - 0.5
        return Prediction(torch.cat([-above, above], dim=1), above)


def showing(classes: list[int]) -> Tensor:
    """Return images (N, 1, 2, 2) to which `Steps` gives these answers."""
    images = torch.full((len(classes), 1, 2, 2), 0.3)
    images[:, 0, 0, 0] = torch.tensor(classes) / (CLASSES - 1)
    return images


_Row = tuple[int, int, int, list[int]]


def judged(rows: list[_Row]) -> JudgingSet:
    """Return a judging set; a row holds the model's answers when perturbed and clean, the source's, and people's."""
    perturbed, clean, source, votes = (list(column) for column in zip(*rows, strict=True))
    return JudgingSet(
        showing(perturbed), showing(clean), torch.tensor(source), torch.arange(len(rows)), {"all": shares(votes)}
    )


def shares(votes: list[list[int]]) -> Tensor:
    """Return the share (N, K) of the people who gave each answer."""
    return torch.stack([torch.tensor(each).bincount(minlength=CLASSES) / len(each) for each in votes])


def run(model: nn.Module, split: Split, judging: JudgingSet, attacks: list[Attack]) -> Evaluation:
    return evaluate(model, split, judging, attacks, generator=torch.Generator().manual_seed(0))


ZERO = torch.tensor([0])
ONE_PIXEL = torch.zeros(1, 1, 1, 1)
ONE_PIXEL_JUDGED = JudgingSet(ONE_PIXEL, ONE_PIXEL, ZERO, ZERO, {"all": torch.tensor([[0.0, 1.0]])})
NOTHING_JUDGED = judged([(0, 0, 0, [1])])
ONE_IMAGE = Split(showing([0]), torch.tensor([0]))


def share(flags: list[bool]) -> float:
    return float(Fraction(sum(flags), len(flags))) if flags else 0.0


labels = st.integers(0, CLASSES - 1)
people = st.lists(labels, min_size=1, max_size=4)


@given(st.lists(st.tuples(labels, labels, labels, people), min_size=1, max_size=12))
def test_invariance_numbers_are_those_of_the_definition(rows: list[_Row]) -> None:
    """Count person by person, each image's people weighing one together."""
    said = [
        (Fraction(1, len(votes)), answer, clean, source, vote)
        for answer, clean, source, votes in rows
        for vote in votes
    ]
    changed = [each for each in said if each[4] != each[3]]

    def weigh(
        part: list[tuple[Fraction, int, int, int, int]], whole: list[tuple[Fraction, int, int, int, int]]
    ) -> float:
        return float(sum(each[0] for each in part) / sum(each[0] for each in whole)) if whole else 0.0

    found = run(Steps(), ONE_IMAGE, judged(rows), [])
    masses = [Fraction(sum(vote != source for vote in votes), len(votes)) for _, _, source, votes in rows]
    assert found.invariance_changed_mass == pytest.approx(float(sum(masses)), abs=1e-6)
    effective = sum(masses) ** 2 / sum(mass**2 for mass in masses) if changed else 0
    assert found.invariance_effective_size == pytest.approx(float(effective), abs=1e-5)
    agreeing = weigh([each for each in changed if each[1] == each[4]], changed)
    assert found.invariance_accuracy == pytest.approx(agreeing, abs=1e-6)
    right = [each for each in changed if each[2] == each[3]]
    stuck = weigh([each for each in right if each[1] == each[3]], right)
    assert found.invariance_stuck == pytest.approx(stuck, abs=1e-6)
    unchanged = [each for each in said if each[4] == each[3]]
    kept = weigh([each for each in unchanged if each[1] == each[3]], unchanged)
    assert found.invariance_unchanged == pytest.approx(kept, abs=1e-6)
    assert found.invariance_original_label == share([answer == source for answer, _, source, _ in rows])


def test_invariance_goes_by_people_and_never_by_the_source() -> None:
    """Measure a model that never changes its answer, which agreement with the source's label would call perfect."""
    found = run(Steps(), ONE_IMAGE, judged([(1, 1, 1, [2]), (3, 3, 3, [4]), (2, 2, 2, [2])]), [])
    assert found[2:8] == (0.0, 1.0, 1.0, 2.0, 2.0, 1.0)


def test_what_was_wrong_when_clean_is_not_stuck() -> None:
    found = run(Steps(), ONE_IMAGE, judged([(1, 0, 1, [2]), (1, 1, 1, [2]), (3, 1, 1, [2])]), [])
    assert found.invariance_stuck == 0.5


def test_an_image_on_which_people_disagree_counts_by_their_shares() -> None:
    """Three of four people see 2 instead of 1: a model that says 2 agrees with all of these, and with no other."""
    found = run(Steps(), ONE_IMAGE, judged([(2, 1, 1, [2, 2, 2, 1]), (0, 1, 1, [1, 1, 3, 3])]), [])
    assert found.invariance_changed_mass == 1.25
    assert found.invariance_accuracy == 0.6
    assert found.invariance_unchanged == 0


@given(st.lists(people, min_size=1, max_size=6), st.lists(labels, min_size=6, max_size=6))
def test_no_model_agrees_with_more_people_than_is_attainable(votes: list[list[int]], answers: list[int]) -> None:
    """Let the source show 0: a model that says of each image what most of those say who see a change attains it."""
    best = [max([vote for vote in each if vote], key=each.count, default=0) for each in votes]
    if not any(best):
        return
    attainable = judged([(0, 0, 0, each) for each in votes]).attainable
    found = [
        run(Steps(), ONE_IMAGE, judged([(answer, 0, 0, each) for answer, each in zip(said, votes, strict=False)]), [])
        for said in (best, answers)
    ]
    assert found[0].invariance_accuracy == pytest.approx(attainable, abs=1e-6)
    assert found[1].invariance_accuracy <= attainable + 1e-6


def test_the_other_crowd_stands_beside_under_its_own_name() -> None:
    ours = judged([(1, 1, 1, [1, 2]), (2, 2, 2, [2, 2])])
    theirs = judged([(1, 1, 1, [2, 2]), (2, 2, 2, [3, 2])])
    both = run(Steps(), ONE_IMAGE, ours._replace(shares={"mine": ours.crowd, "theirs": theirs.crowd}), [])
    assert both[:8] == run(Steps(), ONE_IMAGE, ours, [])[:8]
    alone = run(Steps(), ONE_IMAGE, theirs, []).numbers()
    assert both.others == {
        f"theirs/{name}": alone[name]
        for name in (
            *("invariance_accuracy", "invariance_stuck", "invariance_unchanged"),
            *("invariance_changed_mass", "invariance_effective_size"),
        )
    }


pixels = st.lists(st.tuples(st.integers(0, 100).map(lambda k: k / 100), st.integers(0, 1)), min_size=1, max_size=12)


@given(pixels, st.sampled_from([0.0, 0.015, 0.105, 0.255, 0.495]), st.integers(1, 3))
def test_sensitivity_of_a_threshold_is_a_matter_of_distance(
    rows: list[tuple[float, int]], epsilon: float, restarts: int
) -> None:
    """Check that robust means right when clean and further from the threshold than the budget; never equal here."""
    rows = [(value, label) for value, label in rows if value != 0.5] or [(0.0, 0)]
    split = Split(torch.tensor([value for value, _ in rows]).view(-1, 1, 1, 1), torch.tensor([k for _, k in rows]))
    attacks = [pgd_attack(norm="linf", epsilon=epsilon, steps=3, restarts=restarts)]
    found = run(Threshold(), split, ONE_PIXEL_JUDGED, attacks)
    right = [(value > 0.5) == (label == 1) for value, label in rows]
    assert found.clean_accuracy == share(right)
    assert found.sensitivity_accuracy == share(
        [ok and abs(value - 0.5) > epsilon for ok, (value, _) in zip(right, rows, strict=True)]
    )


@given(st.data())
def test_an_image_survives_only_if_it_survives_every_attack_and_restart(data: st.DataObject) -> None:
    count = 8
    answers = data.draw(st.lists(labels, min_size=count, max_size=count))
    rounds = data.draw(st.lists(st.lists(st.sets(st.integers(0, count - 1)), min_size=1, max_size=3), max_size=3))

    def breaking(rounds: list[set[int]]) -> Attack:
        def attack(victim: Victim, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
            return torch.stack(
                [
                    showing([(int(victim.labels[row]) + 1) % CLASSES])[0]
                    if row in rounds[number]
                    else victim.images[row]
                    for row in rows.tolist()
                ]
            )

        return Attack("by hand", len(rounds), attack)

    split = Split(showing(answers), torch.full((count,), 2))
    found = run(Steps(), split, NOTHING_JUDGED, [breaking(each) for each in rounds])
    broken = {row for each in rounds for rows in each for row in rows}
    assert found.clean_accuracy == share([answer == 2 for answer in answers])
    assert found.sensitivity_accuracy == share([answer == 2 and k not in broken for k, answer in enumerate(answers)])


def small_network() -> nn.Module:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
            self.head = nn.Linear(4, CLASSES)

        def forward(self, images: Tensor) -> Prediction:
            embedding = self.layers(images)
            return Prediction(self.head(embedding), embedding)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Network()


def in_mid_training(model: nn.Module) -> nn.Module:
    """Give the model mixed modes, gradients and frozen parameters."""
    model.train()
    model.get_submodule("layers.1").eval()
    model.get_parameter("layers.0.weight").requires_grad_(False)
    model.get_parameter("head.weight").grad = torch.ones(CLASSES, 4)
    return model


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "wanted": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "global state": torch.get_rng_state(),
    }


def assert_same(before: object, after: object) -> None:
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("fails", [False, True], ids=["", "that fails"])
def test_an_evaluation_leaves_the_model_as_it_was(fails: bool) -> None:
    model = in_mid_training(small_network())
    if fails:
        with torch.no_grad():
            model.get_parameter("head.bias")[0] = torch.nan
    before = copy.deepcopy(snapshot(model))
    split = Split(showing([0, 1, 2, 3]), torch.tensor([0, 1, 2, 3]))
    attacks = [pgd_attack(norm="linf", epsilon=0.2, steps=3, restarts=2)]
    if fails:
        with pytest.raises(TrialFailed, match="logits on clean images are not finite"):
            run(model, split, NOTHING_JUDGED, attacks)
        before["tensors"], after = None, snapshot(model) | {"tensors": None}  # a NaN equals nothing
    else:
        run(model, split, NOTHING_JUDGED, attacks)
        after = snapshot(model)
    assert_same(before, after)


def test_models_are_evaluated_in_evaluation_mode() -> None:
    """Check by dropout: if it were active, two evaluations would differ."""
    model, generator = in_mid_training(small_network()), torch.Generator().manual_seed(3)
    split = Split(torch.rand(40, 1, 2, 2, generator=generator), torch.randint(CLASSES, (40,), generator=generator))
    attacks = [pgd_attack(norm="linf", epsilon=0.1, steps=3)]
    first = run(model, split, NOTHING_JUDGED, attacks)
    assert first == run(model, split, NOTHING_JUDGED, attacks)
    assert first == run(model.eval(), split, NOTHING_JUDGED, attacks)


def test_the_attack_starts_where_its_generator_decides() -> None:
    """Check on a model without gradient near its threshold, where only the random start decides."""

    class Blind(Threshold):
        def forward(self, images: Tensor) -> Prediction:
            return super().forward(images.round(decimals=2) + 0 * images)

    split = Split(torch.full((64, 1, 1, 1), 0.56), torch.ones(64, dtype=torch.long))
    attacks = [pgd_attack(norm="linf", epsilon=0.1, steps=1)]

    def found(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return evaluate(Blind(), split, ONE_PIXEL_JUDGED, attacks, generator=generator).sensitivity_accuracy

    assert found(1) == found(1)
    assert len({found(seed) for seed in range(5)}) > 1


def test_the_judging_attack_is_the_plans() -> None:
    evaluation = EvaluationConfig(
        eval_sensitivity_norm="l2",
        eval_sensitivity_epsilon=0.7,
        eval_sensitivity_steps=9,
        eval_sensitivity_restarts=3,
    )
    (attack,) = evaluation_attacks(evaluation)
    assert attack.rounds == 3
    calls = []

    def logits(images: Tensor) -> Tensor:
        calls.append(len(images))
        above = images.flatten(1).sum(1, keepdim=True)
        return torch.cat([-above, above], dim=1) / 100

    images = torch.full((2, 1, 4, 4), 0.5)
    victim = Victim(logits, images, torch.ones(2, dtype=torch.long))
    perturbed = attack.run(victim, torch.arange(2), 0, torch.Generator().manual_seed(0))
    assert calls == [2] * 9
    # The whole budget is used on a linear model that it can't break, and no more.
    assert (perturbed - images).flatten(1).norm(dim=1).tolist() == pytest.approx([0.7, 0.7], abs=1e-5)


def test_accuracies_do_not_depend_on_the_order_of_the_judging_set() -> None:
    rows = [(random.Random(k).randrange(CLASSES), k % 3, k % 4, [k % CLASSES, k % 3]) for k in range(40)]
    shuffled = random.Random(7).sample(rows, len(rows))
    one, other = (run(Steps(), ONE_IMAGE, judged(each), []).numbers() for each in (rows, shuffled))
    assert one == pytest.approx(other)
