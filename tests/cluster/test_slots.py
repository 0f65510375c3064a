"""The number of trials that run at once, and what they may cost: by requests, by measured memory, by GPU hours."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search_spaces.reading import load_space
from sweep.engine import slots
from sweep.engine.slots import Node, Slots, concurrency
from sweep.engine.trainable import Footprint
from sweep.ledger.records import TrialRecord
from sweep.plan.from_options import make_plan
from sweep.plan.objectives import OBJECTIVES
from sweep.plan.plan import SweepPlan
from sweep.search.budget import Budget
from sweep.state.sweep_state import SweepState
from tests.cluster.test_survival import SPACE, Sweep, assert_everything_once
from trainer.errors import InputError

GIGABYTE = 10**9


@pytest.fixture
def plan_of(tmp_path: Path) -> Any:
    def make(**options: Any) -> SweepPlan:
        return make_plan(load_space("digits"), storage=str(tmp_path), **options)

    return make


def offer(monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> None:
    monkeypatch.setattr(slots, "alive_nodes", lambda: list(nodes))


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "fits"),
    [
        (Node(2, 0, 0), 1, 0, 2),
        (Node(2, 0, 0), 0.1, 0, 20),
        (Node(3, 0, 0), 2, 0, 1),
        (Node(100, 1, 0), 1, 0.1, 10),
        (Node(100, 2, 0), 1, 0.4, 4),
        (Node(100, 8, 0), 1, 3, 2),
        (Node(4, 1, 0), 1, 0.1, 4),
        (Node(4, 0, 0), 1, 0.1, 0),
    ],
)
def test_trials_on_a_node(node: Node, cpus: float, gpus: float, fits: int) -> None:
    assert node.fitting(cpus=cpus, gpus=gpus) == fits


def test_trials_on_a_cluster_do_not_span_nodes(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Node(3, 0, 0), Node(3, 0, 0))
    assert concurrency(plan_of(cpus_per_trial=2), print) == 2
    assert concurrency(plan_of(max_concurrent=3), print) == 3
    with pytest.raises(
        InputError, match=r"--cpus-per-trial 4: no node of the cluster has that; its 2 nodes have 3 CPU"
    ):
        concurrency(plan_of(cpus_per_trial=4), print)
    offer(monkeypatch, Node(8, 0, 0), Node(1, 1, 0))
    with pytest.raises(InputError, match=r"--cpus-per-trial 2 --gpus-per-trial 1: no node"):
        concurrency(plan_of(cpus_per_trial=2, gpus_per_trial=1), print)
    offer(monkeypatch, Node(8, 0, 0))
    with pytest.raises(InputError, match=r"^--gpus-per-trial 0.1: this machine has 8 CPU and 0 GPU$"):
        concurrency(plan_of(gpus_per_trial=0.1), print)


def test_memory_of_the_largest_trial_so_far_decides(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Node(16, 0, 10 * GIGABYTE), Node(16, 0, 3 * GIGABYTE))
    plan = plan_of(max_concurrent="auto")
    assert (plan.measure_memory, plan.max_concurrent) == (True, 0)
    found = Slots(plan, 32, known=True)
    assert found.limit == 1
    told = [(found.observe(Footprint(round(size * GIGABYTE), 0, 0)), found.limit) for size in (1, 0.5, 2, 20)]
    assert told == [(True, 13), (False, 13), (True, 6), (True, 1)], "at least the one that runs goes on"
    assert Slots(plan_of(), 32, known=False).limit == 32


def test_memory_of_a_gpu_is_shared(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Node(64, 2, 1000 * GIGABYTE))
    found = Slots(plan_of(max_concurrent="auto", gpus_per_trial=0.1), 20, known=True)
    assert found.observe(Footprint(GIGABYTE, 3 * GIGABYTE, 80 * GIGABYTE))
    assert found.limit == 20
    assert found.observe(Footprint(GIGABYTE, 20 * GIGABYTE, 80 * GIGABYTE))
    assert found.describe() == "a trial takes 1.00 GB and 20.00 GB of a GPU: 6 at once from now on"


def test_gpu_hours_are_what_trials_hold_across_resumptions(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    config = {"epochs": 10}
    said = [{"epoch": 5, "final": False}]
    before = TrialRecord(0, config, 0, "failed", started=0.0, slot_seconds=1800.0)
    cut = TrialRecord(1, config, 0, "running", started=0.0, slot_seconds=900.0, reports=said)
    results = SweepState(OBJECTIVES, {0: before, 1: cut}, total=9)
    budget = Budget(plan_of(gpus_per_trial=0.5, max_gpu_hours=1.0), results, 2)
    assert budget.gpu_hours == 0.5 * 2700 / 3600
    budget.hold(1)
    now = 900.0
    assert budget.slot_seconds(1) == 1800.0
    assert budget.gpu_hours == 0.5
    assert budget.usual == 1800.0, "of one that failed what it took, of one that runs what it would take: the mean"
    assert not budget.enough(), "0.5 hours, and 0.25 of another"
    budget.promised = 3
    assert budget.enough(), "two more were proposed that have no slot yet"
    now = 4499.0
    assert not budget.spent()
    now = 4501.0
    assert (budget.spent(), budget.overrun()) == (True, False)
    now = 4501.0 + 7200.0
    assert budget.overrun()
    fresh = Budget(plan_of(gpus_per_trial=0.5, max_gpu_hours=1.0), SweepState(OBJECTIVES, {}, total=9), 2)
    fresh.hold(0)
    now += 9e9
    assert (fresh.spent(), fresh.overrun()) == (True, False)


@pytest.mark.slow
@pytest.mark.cluster
def test_shares_of_a_gpu_memory_and_gpu_hours_in_a_sweep(new_storage: Callable[[str], Path]) -> None:
    from ray.cluster_utils import Cluster

    storage = new_storage("shares")
    (storage / "tiny.yaml").write_text(SPACE)
    limits = {"num_cpus": 3, "num_gpus": 1, "memory": 2 * 10**9}
    cluster = Cluster(initialize_head=True, head_node_args=limits)
    sweep = Sweep(storage, {"RAY_ADDRESS": str(cluster.address)})
    try:
        words = ("run", str(storage / "tiny.yaml"), "--name", "gpu", "--trials", "8", "--gpus-per-trial")
        refused = sweep.call(*words, "1.0", "--cpus-per-trial", "4")
        assert refused.returncode == 2
        assert refused.stderr == "otsweep: --cpus-per-trial 4: this machine has 3 CPU and 1 GPU\n"
        assert not (storage / "gpu").exists()

        cap, share = 0.1 * 3.0 / 3600, 0.1
        capped = sweep.call(*words, str(share), "--max-concurrent", "auto", "--max-gpu-hours", f"{cap:.8f}")
        # On a slow machine the budget is gone before any trial has finished.
        trials = sweep.trials("gpu").values()
        ended = sum(record.state == "finished" for record in trials)
        assert capped.returncode == (0 if ended else 1), capped.stdout + capped.stderr
        assert "GB: " in capped.stdout
        assert "at once from now on" in capped.stdout
        assert len(trials) < 8
        spent = share * sum(record.slot_seconds for record in trials) / 3600
        assert spent <= cap + share * max(record.slot_seconds for record in trials) / 3600
        assert f"Ended after {ended} of 8 trials, as the plan has it" in capped.stdout

        done = sweep.call("resume", "gpu", "--max-gpu-hours", "1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(sweep.trials("gpu")) == 8
        assert_everything_once(sweep, "gpu")
    finally:
        cluster.shutdown()
