"""Run a plan on Ray Tune: prepare what all trials share, schedule them, write every event into the ledger.

Ray Tune places trials, reuses workers and brings back those whose worker was lost. The truth stays in the ledger: a
sweep is resumed by replaying it, never by unpickling Ray's own state.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError

from sweep.budget import Budget
from sweep.ledger import EndState, LedgerWriter
from sweep.mirror import push, url_of
from sweep.nodes import check_storage, lost_with_its_node
from sweep.packs import LIGHT, PackedTrial, PackFailed, Packs, Vacating, why_failed
from sweep.plan import SweepPlan
from sweep.results import FACTS, Facts, Results, read_facts
from sweep.scheduler import MultiObjectiveASHA, Rungs, rung_levels
from sweep.search import ParetoSearch
from sweep.slots import SlotLimiter, Slots, concurrency, slots_now
from sweep.trainable import FAILURE, FOOTPRINT, STORAGE, WARNINGS, Footprint, Task, TrialTrainable
from trainer.config import InputError, OtsweepError, StorageFailed
from trainer.durable import patiently, write_whole
from trainer.report import collapse

LOST_WORKER_RETRIES = 3
"""How often a trial is brought back after its worker was lost (killed, out of memory). A node that left does not count:
on spot machines that is nobody's fault, and happens any number of times."""

STARTS = 4
"""How often Ray is started on a machine that is busy."""

WAIT_SECONDS = 1.0
"""Between two looks at whether somebody asked to stop, while nothing is heard from a worker."""

TOLD_SECONDS = 0.2
"""Between two words on the preparation's progress."""

Progress = Callable[[str, int, int], None]


class Interruption:
    """Ctrl-C or SIGTERM: the first asks the sweep to stop cleanly, the second ends the process."""

    def __init__(self) -> None:
        self.asked = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.ask)
        return self

    def ask(self, number: int, frame: object) -> None:
        self.asked = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self.restore()


def never() -> bool:
    return False


class Asked(tune.Stopper):
    """Tells Ray Tune to stop each trial at its next epoch once the budget is `spent`, and all at once if so `asked`."""

    def __init__(self, *, asked: Callable[[], bool] = never, spent: Callable[[], bool] = never) -> None:
        self.asked, self.spent = asked, spent

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.spent()

    def stop_all(self) -> bool:
        return self.asked()

    def __reduce__(self) -> tuple[Any, ...]:
        # As the callbacks: pickled by Ray Tune for a restore of its own, which is never asked for.
        return Asked, ()


class Scribe(tune.Callback):
    """Writes every event into the ledger before anyone acts on it, then tells `listen` which trial it was.

    Where the storage refuses for long, nothing more is written, `trouble` says why, and the sweep is to end: what comes
    after an event that could not be recorded must not be recorded either. So it ends where packs can't go on.
    """

    def __init__(
        self,
        ledger: LedgerWriter,
        results: Results,
        rungs: Rungs,
        budget: Budget,
        slots: Slots,
        *,
        listen: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self.ledger, self.results, self.rungs, self.budget, self.slots = ledger, results, rungs, budget, slots
        self.listen, self.say = listen, say
        self.trouble: StorageFailed | PackFailed | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray Tune pickles its callbacks for a restore of its own, which is never asked for.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, config, now = trial.config["number"], trial.config["config"], time.time()
        known = self.results.trials.get(number)
        begun: dict[str, Any] = {"seed": config["seed"], "host": "", "time": now, "noted": trial.config["noted"]}
        begun["attempt"] = 1 + (known.attempts if known else 0)
        if not self.record(lambda: self.ledger.started(number, config=config, **begun)):
            return
        if number in self.budget.holding:
            self.say(f"trial {number:03d}: its worker was lost; goes on from its last epoch")
        self.budget.hold(number)
        self.results.begin(number, config, **begun)
        self.listen(number)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        for warning in result.get(WARNINGS, ()):
            self.say(f"trial {number:03d}: {warning}")
        if STORAGE in result:
            self.trouble = self.trouble or StorageFailed(result[STORAGE])
        elif FAILURE in result:
            self.end(number, "failed", result[FAILURE])
        else:
            self.take(number, result["report"])
            if self.slots.heard(Footprint(*result[FOOTPRINT])) and self.slots.plan.measure_memory:
                self.say(self.slots.describe())

    def take(self, number: int, said: dict[str, Any]) -> None:
        """A report, with what the scheduler decided on it."""
        report, held = {**said, "time": time.time()}, self.budget.held(number)
        if not self.record(lambda: self.ledger.reported(number, report, time=report["time"], held=held)):
            return
        self.results.trials[number].say(report)
        self.results.trials[number].hold(held)
        self.explain_decisions(number)
        if report["final"]:
            if alarm := collapse(report):
                self.say(f"trial {number:03d}: {alarm}")
            self.end(number, "finished", "")
        elif self.rungs.stopped(number):
            self.end(number, "stopped", self.rungs.decisions[number][-1].reason)
        else:
            self.listen(number)

    def explain_decisions(self, number: int) -> None:
        """Write down what the scheduler decided on the report that the ledger holds now."""
        record = self.results.trials[number]
        for decision in self.rungs.decisions.get(number, [])[len(record.decisions) :]:
            plain = decision.to_dict(self.results.objectives)
            if self.record(lambda plain=plain: self.ledger.decided(number, plain, time=time.time())):
                record.decisions.append(plain)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if lost_with_its_node(trial.error_file):
            trial.run_metadata.num_failures = max(0, trial.run_metadata.num_failures - 1)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        if reason := why_failed(trial.error_file):
            self.trouble = self.trouble or PackFailed(reason)
        elif number in self.results.running:
            attempts = self.results.trials[number].attempts
            self.end(number, "failed", f"its worker was lost {attempts} times (killed or out of memory)")

    def end(self, number: int, state: EndState, reason: str) -> None:
        now, held = time.time(), self.budget.held(number)
        if not self.record(lambda: self.ledger.ended(number, state=state, reason=reason, time=now, held=held)):
            return
        self.results.trials[number].hold(held)
        self.results.end(number, state, reason=reason, time=now)
        self.budget.release(number)
        self.listen(number)

    def record(self, write: Callable[[], None]) -> bool:
        """Whether an event is in the ledger now; storage that refuses is waited for, until it is `trouble`."""
        if self.trouble is None:
            try:
                patiently(write, what="the ledger", told=self.say)
            except StorageFailed as error:
                self.trouble = error
        return self.trouble is None


def run_plan(
    plan: SweepPlan,
    ledger: LedgerWriter,
    results: Results,
    *,
    progress: Progress,
    begin: Callable[[], contextlib.AbstractContextManager[Any]],
    listen: Callable[[int], None],
    say: Callable[[str], None],
    on_slots: Callable[[int], None] = lambda slots: None,
) -> bool:
    """Run what is left of a plan; False if it was interrupted, and so can be resumed.

    Args:
        results: what the ledger holds already; brought up to date as trials report.
        progress: told about the preparation: stage, done, total.
        begin: makes a context that is open while trials run (the living screen).
        listen: told the number of each trial that started, reported or ended.
        say: told what a person should know and nobody asked for: a damaged checkpoint, storage that refuses.
        on_slots: called once with the number of slots that the nodes of now give.

    Raises:
        InputError: if the cluster can't give what one trial needs, or the data can't be had.
        StorageFailed: if the storage refused for long; what it took before can be resumed.
        PackFailed: if packs can't run, again and again; so can what came before.
    """
    if len(results.ended) >= plan.trials:
        return True
    # In this order: Ray installs a handler of its own for SIGTERM.
    with ray_session(), Interruption() as interruption:
        concurrent = concurrency(plan, progress)
        on_slots(slots_now(plan, concurrent))
        budget = Budget(plan, results, concurrent)
        if budget.spent() or (budget.enough() and not results.running):
            return True
        check_storage(url_of(Path(plan.storage)) or plan.storage, progress)
        task = make_task(plan)
        facts = prepare(task, plan, progress, interruption)
        if facts is None:
            return False
        record_facts(plan.folder, facts)
        results.facts = facts
        with contextlib.ExitStack() as running:
            most = min(concurrent, plan.trials - len(results.ended))
            packs = running.enter_context(Packs(plan, task, most)) if plan.pack > 1 else None
            while packs and not packs.places(wait=WAIT_SECONDS):
                progress(f"packs of {plan.pack}", 0, len(packs.workers))
                if interruption.asked:
                    return False
            running.enter_context(begin())
            scratch = running.enter_context(tempfile.TemporaryDirectory(prefix="otsweep-tune-"))
            rungs = make_rungs(plan, results)
            slots = Slots(plan, concurrent, known=budget.usual > 0, places=packs.places if packs else None)
            scribe = Scribe(ledger, results, rungs, budget, slots, listen=listen, say=say)
            asked = Asked(
                asked=lambda: interruption.asked or scribe.trouble is not None or budget.overrun(), spent=budget.spent
            )
            make_tuner(plan, task, results, scribe, asked, scratch, packs).fit()
            if scribe.trouble is not None:
                raise scribe.trouble
    return not interruption.asked


def make_rungs(plan: SweepPlan, results: Results) -> Rungs:
    """Where trials are compared, standing as the ledger says."""
    levels = rung_levels(grace_epochs=plan.grace_epochs, eta=plan.eta, epochs=plan.epochs_per_trial)
    levels = levels if plan.stopper == "asha" else []
    rungs = Rungs(
        plan.objectives, levels=levels, eta=plan.eta, require=plan.space.require, stop_chance=plan.stop_chance
    )
    rungs.restore(results.trials.values())
    return rungs


def make_tuner(
    plan: SweepPlan,
    task: Task,
    results: Results,
    scribe: Scribe,
    asked: Asked,
    scratch: str,
    packs: Packs | None,
) -> tune.Tuner:
    """Ray Tune over what is left of the plan. `scratch` takes Ray's own state, which nobody reads."""
    search = ParetoSearch(
        plan.space,
        plan.objectives,
        sampler=plan.sampler,
        seed=plan.seed,
        configurations=plan.configurations,
        epochs=plan.epochs,
        seeds=plan.seeds,
        require=plan.space.require,
        history=results.trials.values(),
        enough=scribe.budget.enough,
    )
    if packs:
        trainable, resources = tune.with_parameters(PackedTrial, packs=packs.workers), LIGHT
    else:
        trainable = tune.with_parameters(TrialTrainable, task=task)
        resources = {"cpu": plan.cpus_per_trial, "gpu": plan.gpus_per_trial}
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=SlotLimiter(search, scribe.slots, scribe.budget),
            scheduler=MultiObjectiveASHA(scribe.rungs),
            num_samples=plan.trials - len(results.ended),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            callbacks=[scribe, Vacating(packs)] if packs else [scribe],
            stop=asked,
            failure_config=tune.FailureConfig(max_failures=LOST_WORKER_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """The cluster this runs in (`RAY_ADDRESS`), else a Ray of this process's own, ended with it."""
    import logging

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise InputError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from None
    else:
        start_ray(**quiet)
    trim_environments()
    silence_raylets()
    # Ray Tune's errors are trials that failed, and those are told in our own words.
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(**options: Any) -> None:
    """A Ray of this process's own. It gives itself 30 s, which a busy machine may need: then it is started anew.

    Raises:
        OtsweepError: if that was to no avail.
    """
    start_what_is_needed()
    for _ in range(STARTS):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:
            # Ray has no class for it.
            if "timed out during startup" not in str(error):
                raise
    raise OtsweepError("Ray did not start: this machine is too busy; `otsweep resume` goes on once it is less so")


def silence_raylets() -> None:
    """Ray prints pages of a lost node's logs into the sweep's own, and has no switch for that."""
    from ray._private import worker

    worker.print_to_stdstream = lambda data, ignore_prefix=False: None


def start_what_is_needed() -> None:
    """A Ray of this process's own would start a dashboard's server, an autoscaler's monitor and a reader of logs too:
    nobody asks them here, and each takes seconds of a core and 100 MB. Ray has no switch for that."""
    from ray._private.node import Node

    for start in ("start_api_server", "start_monitor", "start_log_monitor"):
        setattr(Node, start, lambda *_, **__: None)


def trim_environments() -> None:
    """Ray Tune would send this process's AWS keys along with every trial, and Ray's agents write what they are sent
    into their logs. Every node has keys of its own, in its own environment.

    With nothing to set, trials run in workers that are started already.
    """
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS = {}
    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }


def make_task(plan: SweepPlan) -> Task:
    """What every trial is given, in plain values."""
    evaluation = plan.space.evaluation
    return Task(
        evaluation=tuple(evaluation.to_dict().items()),
        invariance_norms=plan.space.values_of("invariance_norm"),
        sweep_folder=url_of(plan.folder) or str(plan.folder),
        cache_dir=url_of(plan.cache_dir) or str(plan.cache_dir),
        data_dir=str(plan.data_dir) if plan.data_dir else None,
        threads=max(1, int(plan.cpus_per_trial)),
        use_gpu=plan.gpus_per_trial > 0,
        ladder=plan.ladder,
    )


@ray.remote
def prepare_remotely(task: Task) -> Iterator[tuple[str, int, int] | Facts]:
    """The preparation on a worker, so that the driver needs no torch; yields its progress, then what it found."""
    import queue
    import threading

    from sweep.trainable import facts_of, prepare_shared

    said: queue.Queue[tuple[str, int, int] | Facts | Exception] = queue.Queue()

    def work() -> None:
        try:
            said.put(facts_of(prepare_shared(task, lambda *stage: said.put(stage)), task))
        except Exception as error:  # noqa: BLE001 - raised again below, on the thread that Ray listens to
            said.put(error)

    threading.Thread(target=work).start()
    told = 0.0
    while isinstance(news := said.get(), tuple):
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            yield news
    if isinstance(news, Exception):
        raise news
    yield news


def prepare(task: Task, plan: SweepPlan, progress: Progress, interruption: Interruption) -> Facts | None:
    """Everything that all trials share, computed once before the first of them starts; None if interrupted."""
    news: Any = prepare_remotely.options(num_cpus=1, num_gpus=plan.gpus_per_trial).remote(task)
    try:
        while True:
            ready, _ = ray.wait([news], timeout=WAIT_SECONDS)
            if interruption.asked:
                return None
            if not ready:
                continue
            said = ray.get(next(news))
            if isinstance(said, dict):
                return said
            progress(*said)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    return None


def record_facts(folder: Path, facts: Facts) -> None:
    """Keep what the sweep stands on beside its plan; refuse to go on with other data than it began with.

    Raises:
        InputError: if the data is not the same.
        StorageFailed: if they can't be written.
    """
    path, known = folder / FACTS, read_facts(folder)
    if known:
        before = known["data_fingerprint"]
        if before != facts["data_fingerprint"]:
            raise InputError(
                f"the data has changed: the sweep began with fingerprint {before}, and finds "
                f"{facts['data_fingerprint']} now; give it the same files again, or start a new sweep"
            )
        return
    text = json.dumps(facts, indent=2) + "\n"
    patiently(lambda: write_whole(path, text.encode()), what=repr(str(path)))
    push(path)
