"""Pausing and thawing: who goes on, that a ledger restores every choice, and that a budget of epochs holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from search_spaces.requirement import Requirement
from sweep.front.pareto import hypervolume
from sweep.ledger.records import TrialRecord
from sweep.plan.objectives import OBJECTIVES
from sweep.search.decision import CHANGES, NEW, Decision
from sweep.search.expected_gains import ExpectedGains
from sweep.search.freeze_thaw import Choice, FreezeThaw
from sweep.search.rungs import Rungs
from tests.support import events

EPOCHS, LEVELS = 16, [2, 4, 8]
REQUIRE = (Requirement.parse("clean_accuracy >= 0.5", source="require"),)


def curve(number: int, *, seed: int = 0) -> np.ndarray:
    """A noisy way (epochs, 3) to two accuracies that trade off and a third; some trials are plainly worse."""
    generator = np.random.default_rng([seed, number])
    angle, radius = generator.random() * np.pi / 2, generator.uniform(0.3, 0.9)
    end = np.array([radius * np.cos(angle), radius * np.sin(angle), generator.uniform(0.4, 1)])
    rise = np.linspace(0.3, 1, EPOCHS)[:, None]
    return np.clip(end * rise + 0.1 * generator.standard_normal((EPOCHS, 3)), 0, 1)


def report(values: np.ndarray, epoch: int, *, final: bool = False) -> dict[str, Any]:
    names = (*OBJECTIVES.names, "clean_accuracy")
    return {"epoch": epoch, "final": final, **dict(zip(names, values.tolist(), strict=True))}


class Sweep:
    """Sweeps by the rule alone, which record what an engine would in the same events."""

    def __init__(
        self,
        *,
        trials: int,
        slots: int = 1,
        seeds: int = 1,
        require: tuple[Requirement, ...] = (),
        budget: int = 0,
        stop_chance: float = 0.4,
    ) -> None:
        self.slots, self.seeds, self.require = slots, seeds, require
        self.options: dict[str, Any] = {
            "trials": trials,
            "seeds": seeds,
            "budget_epochs": budget,
            "stop_chance": stop_chance,
        }
        self.thaw = self.rule()
        self.records: dict[int, TrialRecord] = {}
        self.choices: list[Choice | None] = []
        self.spent = 0

    def rule(self) -> FreezeThaw:
        rungs = Rungs(OBJECTIVES, levels=LEVELS, eta=2, require=self.require, stops=False)
        return FreezeThaw(rungs, epochs=EPOCHS, **self.options)

    def restored(self) -> FreezeThaw:
        """Return the rule as a resume would make it."""
        again = self.rule()
        again.rungs.restore(self.records.values())
        again.restore(self.records.values())
        return again

    def config(self, number: int) -> dict[str, Any]:
        return {"configuration": number // self.seeds, "seed": number % self.seeds}

    def apply(self, event: Any) -> None:
        number = event["trial"]
        self.records[number] = self.records.get(number, TrialRecord(number)).apply(event)

    def run(self, look: Callable[[], None] = lambda: None) -> None:
        """Run the sweep to its end; `look` is called whenever nothing is under way between two events."""
        running: list[int] = []
        while True:
            while len(running) < self.slots:
                look()
                choice = self.thaw.choose()
                self.choices.append(choice)
                if choice is None:
                    break
                number = len(self.records) if choice.number == NEW else choice.number
                self.thaw.start(number)
                self.apply(events.started(number, self.config(number)))
                running.append(number)
            if not running:
                return
            self.advance(running)

    def advance(self, running: list[int]) -> None:
        """Train an epoch of the trial whose turn it is."""
        number = running.pop(0)
        epoch = 1 + max((each["epoch"] for each in self.records[number].reports), default=0)
        said = report(curve(number)[epoch - 1], epoch)
        self.spent += 1
        paused = self.thaw.observe(number, self.config(number), said)
        self.apply(events.reported(number, said))
        for decision in self.thaw.rungs.decisions.get(number, [])[len(self.records[number].decisions) :]:
            self.apply(events.decided(number, decision.to_dict(OBJECTIVES)))
        if epoch == EPOCHS:
            final = report(curve(number)[-1], epoch, final=True)
            self.thaw.rungs.finish(number, self.config(number), final)
            self.thaw.end(number, finished=True)
            self.apply(events.reported(number, final))
            self.apply(events.ended(number, "finished"))
        elif not paused:
            running.append(number)
        assert (self.records[number].state == "paused") == paused

    @property
    def volume(self) -> float:
        ends = [record.result for record in self.records.values() if record.result]
        return hypervolume([[end[name] for name in OBJECTIVES.names] for end in ends], OBJECTIVES)


def test_the_first_trials_finish_and_the_others_pause() -> None:
    sweep = Sweep(trials=20, slots=6)
    sweep.run()
    first = [sweep.records[number].decisions[0] for number in range(6)]
    assert [each["pause"] for each in first] == [False] * CHANGES + [True] * 2
    assert "too few trials have finished" in first[-1]["reason"]


@pytest.mark.parametrize("require", [(), REQUIRE], ids=["free", "required"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_what_a_ledger_restores_chooses_the_same(seeds: int, require: tuple[Requirement, ...]) -> None:
    sweep = Sweep(trials=24, slots=6, seeds=seeds, require=require, stop_chance=0.1)

    def look() -> None:
        again, live = sweep.restored(), sweep.thaw
        assert again.choose() == live.choose()
        assert (again.paused, again.live, again._left) == (live.paused, live.live, live._left)

    sweep.run(look)
    thawed = [choice for choice in sweep.choices if choice and choice.number != NEW]
    assert thawed, "nothing was thawed, so that nothing was tested"
    assert any(decision["pause"] for record in sweep.records.values() for decision in record.decisions)


def test_more_is_found_with_as_many_epochs() -> None:
    """Compare with the trials that so many epochs train to their ends."""
    sweep = Sweep(trials=200, budget=20 * EPOCHS)
    sweep.run()
    whole = hypervolume([curve(number)[-1][:2] for number in range(20)], OBJECTIVES)
    assert sweep.volume > whole
    assert len(sweep.records) > 40


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("budget", [10, 5 * EPOCHS, 200])
def test_a_budget_of_epochs_holds(budget: int, slots: int) -> None:
    sweep = Sweep(trials=100, slots=slots, budget=budget)
    sweep.run()
    assert sweep.spent <= budget
    assert sweep.spent > budget - EPOCHS * slots


def test_what_stays_paused_has_no_chance() -> None:
    sweep = Sweep(trials=30)
    sweep.run()
    thaw = sweep.thaw
    gains = ExpectedGains(thaw.rungs, epochs=EPOCHS, seeds=1, running=())
    left = [each for number, key in thaw.paused.items() for each in gains.of(key, [number])]
    assert left
    assert all(each.chance <= thaw.stop_chance for each in left)


def test_the_best_is_the_best_of_all() -> None:
    """Compare with a look at every paused trial, in the middle of a sweep."""
    sweep, seen = Sweep(trials=60, slots=2), []

    def look() -> None:
        thaw = sweep.thaw
        if len(thaw.paused) < 5 or len(thaw.paused) % 4:
            return
        gains = ExpectedGains(thaw.rungs, epochs=EPOCHS, seeds=1, running=thaw.live)
        every = [each for number, key in thaw.paused.items() for each in gains.of(key, [number])]
        found = gains.best(thaw._waiting, least_chance=0.3)
        best = max((each.gain for each in every if each.chance > 0.3), default=None)
        assert (found and found.gain) == best
        seen.append(best)

    sweep.run(look)
    assert sum(each is not None for each in seen) > 5


def test_a_pause_that_took_no_effect_is_recorded_again() -> None:
    sweep = Sweep(trials=20, slots=6)
    sweep.run()
    number = next(iter(sweep.thaw.paused))
    [*_, last] = made = sweep.thaw.rungs.decisions[number]
    count = len(made)
    assert sweep.thaw.observe(number, sweep.config(number), report(curve(number)[last.epoch - 1], last.epoch))
    assert made[count:] == [last]


def test_once_it_is_enough_a_trial_goes_on_only_with_a_chance() -> None:
    sweep = Sweep(trials=40)
    sweep.run(lambda: setattr(sweep.thaw, "enough", lambda: len(sweep.records) >= 30))
    late = [each for record in sweep.records.values() for each in record.decisions if "instead" not in each]
    assert {each["pause"] for each in late} == {True, False}


def test_a_decision_comes_back_from_the_ledger_with_its_reason() -> None:
    made = Decision(2, 2, 0, 0, 3, (), False, "", (0.5, 0.25), pause=True, gain=0.001, instead=7, instead_gain=0.002)
    plain = made.to_dict(OBJECTIVES)
    assert plain["reason"] == "paused after epoch 2: expected to add 0.001 of hypervolume per epoch, trial 007 0.002"
    assert Decision.from_dict(plain, OBJECTIVES) == made
