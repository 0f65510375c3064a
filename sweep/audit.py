"""Audit a sweep: its finalists trained again on fresh seeds and judged on the test split by the full set of attacks.

A front is the best of many noisy numbers, selected on the validation split under a cheap attack, so it looks better
than it is. The audit says how much of it is left. All that it finds lies in `<sweep>/audit/`:

    0003-<seed>.json       one finalist on one seed, written at once and whole: an audit that was stopped goes on here
    models/                checkpoints and models: 0003-<seed>/, and undefended-<digest>/ for the twins
    audit.png curves.png   the audited front beside the selected one; accuracy over epsilon

Shapes: n finalists, d objectives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from rich.console import Console
from rich.markup import escape
from scipy.stats import binomtest

from sweep import pareto
from sweep.driver import (
    LOST_WORKER_RETRIES,
    Interruption,
    concurrency,
    make_task,
    prepare,
    ray_session,
    record_facts,
)
from sweep.ledger import TrialRecord
from sweep.pareto import Objectives
from sweep.places import storage_folder
from sweep.plan import SweepPlan
from sweep.results import Results
from sweep.screen import duration
from sweep.tables import ACCURACIES, label, percent
from sweep.trainable import Task, evaluation_of, explain, shared
from trainer.config import InputError, TrialConfig, check_value, did_you_mean, knob

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

    from trainer.data import Split
    from trainer.evidence import Evidence

FORMAT = 1
"""Of the results and of the procedures behind them: raise it when either changes, and they are made again."""

FOLDER, FRONT_PICTURE, CURVES_PICTURE = "audit", "audit.png", "curves.png"
POLL_SECONDS = 0.5

TWIN_KEEPS = ("architecture", "embedding_size", "learning_rate", "weight_decay", "batch_size", "epochs")
"""What a finalist and its undefended twin have in common; every weight of a defence is at its default, 0."""

MEASURED = ("sensitivity_accuracy", "invariance_accuracy", "clean_accuracy")
"""Report fields that can be compared with what was selected, since the images behind each share are counted."""

ROWS = {
    **ACCURACIES,
    "adversary_accuracy": "per-model invariance",
    "adversary_stuck": "per-model stuck",
    "curve_area": "curve area",
}
"""Numbers of a finalist's rows, and their headings."""

COUNTS = {"invariance_accuracy": "invariance_changed_size", "adversary_accuracy": "adversary_size"}
"""Shares of images that are counted in the result itself; the others with an interval are of all test images."""


# --------------------------------------------------------------------------------------------------------- the options


@dataclass(frozen=True)
class AuditOptions:
    """How much is spent. Each field is an option of the same name."""

    seeds: int = knob(3, low=1, high=1000)
    """Fresh seeds that every finalist is trained on."""

    finalists: int = knob(8, low=1, high=100_000)
    """Most trials that are audited, the front's first."""

    test_size: int = knob(1000, low=0, high=1_000_000)
    """Test images, drawn by the split's seed, for clean and sensitivity accuracy and the evidence; 0 takes all.
    Invariance starts from as many test images as the plan takes of the validation split."""

    steps: int = knob(100, low=1, high=10_000)
    """Gradient steps of a round of the full set of attacks."""

    queries: int = knob(5000, low=1, high=1_000_000)
    """Calls of the model by Square."""

    @property
    def judged_by(self) -> dict[str, int]:
        """What must agree for two results to be of the same kind."""
        return {"format": FORMAT, "test_size": self.test_size, "steps": self.steps, "queries": self.queries}


OPTIONS: dict[str, dataclasses.Field] = {field.name: field for field in dataclasses.fields(AuditOptions)}


def read_options(given: Mapping[str, Any]) -> AuditOptions:
    """Options as typed, by name; what is None or left out keeps its default.

    Raises:
        InputError: naming the option, the value and what would be right.
    """
    typed = {name: given[name] for name in OPTIONS if given.get(name) is not None}
    return AuditOptions(**{name: _read_option(name, value) for name, value in typed.items()})


def _read_option(name: str, value: Any) -> int:
    with contextlib.suppress(ValueError):  # a word is refused below, by name
        value = int(value)
    return check_value(_flag(name), value, OPTIONS[name])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# ---------------------------------------------------------------------------------------------- what was found of whom


class Job(NamedTuple):
    """One training on a worker."""

    name: str
    """Of its folder and of its result."""
    number: int
    """Of the finalist; -1 for a twin."""
    config: dict[str, Any]
    """With the fresh seed in it."""


@dataclass(frozen=True)
class Audited:
    """One finalist, trained on one fresh seed and judged on the test split; as it stands in its file."""

    number: int
    config: dict[str, Any]
    judged_by: dict[str, int]
    images: int
    """Test images behind clean and sensitivity accuracy and the evidence."""
    numbers: dict[str, float]
    """Accuracies and shares by the names of `EpochReport`; those of `attack_invariance`; and `curve_area`."""
    curve: dict[str, list[float]]
    """Accuracy over the budget, as in `trainer.evidence.Curve`."""
    evidence: dict[str, float | None]
    """Every other number of `trainer.evidence.Evidence`."""
    warnings: list[str]
    """One per failed check against a meaningless attack."""

    @property
    def seed(self) -> int:
        return self.config["seed"]


@dataclass(frozen=True)
class Finalist:
    """A trial of the sweep beside what became of it."""

    record: TrialRecord
    runs: tuple[Audited, ...]
    """At least one, by seed."""

    @property
    def selected(self) -> Mapping[str, float]:
        """The numbers it was selected by, on the validation split."""
        assert self.record.result is not None
        return self.record.result

    @property
    def mean(self) -> dict[str, float]:
        """The audited numbers, mean over the seeds."""
        return {name: fmean(run.numbers[name] for run in self.runs) for name in self.runs[0].numbers}

    @property
    def images(self) -> int:
        return self.runs[0].images

    def spread(self, name: str) -> float:
        """Sample standard deviation over the seeds; 0 for one seed."""
        return stdev(run.numbers[name] for run in self.runs) if len(self.runs) > 1 else 0.0


# ----------------------------------------------------------------------------------------------------------- the rules


class Cloud(NamedTuple):
    """Points with their 95% Wilson intervals, (n, d) each, turned so that more is better."""

    gains: np.ndarray
    low: np.ndarray
    high: np.ndarray


def cloud(results: Sequence[Mapping[str, float]], objectives: Objectives, *, images: int) -> Cloud:
    """The points of results, each share counted on its own number of images.

    Args:
        results: shares by name; means over seeds too, which have no more images than one seed: all saw the same.
        images: behind clean and sensitivity accuracy; how many are behind invariance accuracy is in the results.
    """
    points = [[result[name] for name in objectives.names] for result in results]
    bounds = np.array(
        [[share_interval(name, result, images=images) for name in objectives.names] for result in results]
    )
    ends = objectives.turn(bounds[..., 0]), objectives.turn(bounds[..., 1])
    return Cloud(objectives.turn(points), np.minimum(*ends), np.maximum(*ends))


def share_interval(name: str, result: Mapping[str, float], *, images: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `images`, or of as many as the result itself counts."""
    count = int(result[COUNTS[name]]) if name in COUNTS else images
    interval = binomtest(round(result[name] * count), count).proportion_ci(method="wilson")
    return interval.low, interval.high


def dominated_beyond(points: Cloud, by: Cloud) -> np.ndarray:
    """(n,) bool: one of `by` is at least as good in every objective and, in at least one, so much better that the two
    intervals don't meet."""
    at_least = np.all(by.gains[None] >= points.gains[:, None], axis=-1)
    beyond = np.any(by.low[None] > points.high[:, None], axis=-1)
    return np.logical_and(at_least, beyond).any(axis=1)


def choose_finalists(results: Results, *, images: int) -> list[TrialRecord]:
    """The front and its near neighbours: the finished trials that none dominates beyond the intervals.

    Those on the front come first, by what each alone adds to the hypervolume; then the others, by the least amount
    that, added to every objective, would bring each onto the front.
    """
    finished = sorted(results.finished.values(), key=lambda record: record.number)
    points, objectives = results.points(finished), results.objectives
    measured = cloud([record.reports[-1] for record in finished], objectives, images=images)
    on_front = pareto.front_mask(points, objectives)
    # Whoever is dominated beyond the intervals is so by the front: an interval rises with its share.
    front = Cloud(*(field[on_front] for field in measured))
    short = (front.gains[None] - measured.gains[:, None]).min(-1).max(1)
    # A tie in one objective leaves a dominated trial short of nothing: so whoever is on the front comes first.
    best_first = np.lexsort((-pareto.contributions(points, objectives), short, ~on_front))
    near = ~dominated_beyond(measured, front)
    return [finished[place] for place in best_first if near[place]]


def verdicts(selected: Cloud, audited: Cloud, names: Sequence[str]) -> list[str]:
    """What became of each of n finalists.

    A point held if no audited point dominates it beyond the intervals and if, in every objective, the audited interval
    reaches the selected one or lies above it. Else it is `dominated`, `lower` in the objectives named, or both.
    """
    lower, dominated = audited.high < selected.low, dominated_beyond(audited, audited)
    said = [["dominated"] * int(fell) for fell in dominated]
    for words, row in zip(said, lower, strict=True):
        words += [f"lower {ACCURACIES[name]}" for name, fell in zip(names, row, strict=True) if fell]
    return [", ".join(words) or "held" for words in said]


# ------------------------------------------------------------------------------------------------------ on the workers


def prepare_test(task: Task) -> None:
    """The test split's judging set and per-model attack, made once and kept in the cache."""
    shared(task).judging_set("test")
    shared(task).adversary("test")


def train_twin(task: Task, twin: Job, folder: Path) -> str:
    """Train an undefended model; why it failed, or nothing."""
    try:
        train(task, twin, folder)
    except Exception as error:  # noqa: BLE001 - the audit goes on without this twin
        return explain(error)
    return ""


def audit_one(task: Task, job: Job, twin: Job | None, folder: Path, options: AuditOptions) -> str:
    """Train one finalist, judge it and write the result; why it failed, or nothing."""
    from trainer.checkpoint import FolderStore

    try:
        model, undefended = train(task, job, folder), train(task, twin, folder) if twin else None
        content = dataclasses.asdict(judge(task, job, model, undefended, options))
        FolderStore(folder).write(result_file(job), json.dumps(content, indent=1).encode())
    except Exception as error:  # noqa: BLE001 - one may fail in any way, and the audit goes on
        return explain(error)
    return ""


def result_file(job: Job) -> str:
    return f"{job.name}.json"


def train(task: Task, job: Job, folder: Path) -> nn.Module:
    """The model that a trial of this configuration chooses; what an earlier audit left of it is gone on with."""
    import torch

    from trainer.checkpoint import FolderStore
    from trainer.trial import MODEL_FILE, load_model, run_trial

    torch.set_num_threads(task.threads)
    config, where, device = TrialConfig.from_mapping(job.config), folder / "models" / job.name, device_of(task)
    if not (where / MODEL_FILE).exists():
        deque(run_trial(config, evaluation_of(task), shared(task), store=FolderStore(where), device=device), maxlen=0)
    return load_model(where / MODEL_FILE).to(device)


def device_of(task: Task) -> str:
    import torch

    return "cuda" if task.use_gpu and torch.cuda.is_available() else "cpu"


def judge(task: Task, job: Job, model: nn.Module, twin: nn.Module | None, options: AuditOptions) -> Audited:
    """Every number of one model on the test split. The generators' seed is the same for all, so that it cancels."""
    from trainer.evaluation import evaluate
    from trainer.sensitivity import ensemble
    from trainer.trial import judging_generator, to_device

    prepared, evaluation, device = shared(task), evaluation_of(task), next(model.parameters()).device
    test = to_device(draw(prepared.data.test, options.test_size, seed=evaluation.split_seed), device)
    attacks = ensemble(
        norm=evaluation.eval_sensitivity_norm,
        epsilon=evaluation.eval_sensitivity_epsilon,
        steps=options.steps,
        queries=options.queries,
        model=model,
    )
    judging = prepared.judging_set("test").to(device)
    judged = evaluate(model, test, judging, attacks, generator=judging_generator(evaluation, device))
    evidence = check(task, model, twin, test, options)
    return Audited(
        number=job.number,
        config=job.config,
        judged_by=options.judged_by,
        images=len(test.labels),
        numbers={**judged._asdict(), **attack_invariance(task, model), "curve_area": evidence.curve.area},
        curve={name: list(values) for name, values in evidence.curve._asdict().items()},
        evidence={name: value for name, value in vars(evidence).items() if name != "curve"},
        warnings=evidence.warnings,
    )


def attack_invariance(task: Task, model: nn.Module) -> dict[str, float]:
    """The per-model attack beside the fixed set: over the test images of which some candidate shows the oracle another
    class, the share where the model sees it in every candidate (`adversary_accuracy`), and, among those that it had
    right when clean, the share where its answer to some candidate is still the same (`adversary_stuck`)."""
    import torch

    from trainer.evaluation import mean
    from trainer.sensitivity import frozen

    device = next(model.parameters()).device
    with frozen(model), torch.no_grad():
        found = shared(task).adversary("test").run(lambda images: model(images.to(device)).logits.cpu())
    return {
        "adversary_accuracy": mean(found.accurate[found.attackable]),
        "adversary_stuck": mean(found.stuck[found.attackable & found.right]),
        "adversary_size": int(found.attackable.sum()),
    }


def check(task: Task, model: nn.Module, twin: nn.Module | None, test: Split, options: AuditOptions) -> Evidence:
    """Evidence against a meaningless attack, at half the steps: the check that doubles them takes all."""
    from trainer.evaluation import BATCH
    from trainer.evidence import gather_evidence
    from trainer.sensitivity import frozen
    from trainer.trial import judging_generator

    evaluation, device = evaluation_of(task), test.images.device
    with frozen(model), frozen(twin) if twin else contextlib.nullcontext():
        return gather_evidence(
            lambda images: model(images).logits,
            *test,
            norm=evaluation.eval_sensitivity_norm,
            epsilon=evaluation.eval_sensitivity_epsilon,
            generator=judging_generator(evaluation, device),
            twin=(lambda images: twin(images).logits) if twin else None,
            steps=max(1, options.steps // 2),
            queries=max(1, options.queries // 5),
            batch_size=BATCH[device.type],
        )


def draw(split: Split, size: int, *, seed: int) -> Split:
    """So many images of a split, all for 0. Drawn, since the first of MNIST's test images are easier than the last."""
    import torch

    count = len(split.labels)
    if not 0 < size < count:
        return split
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size].sort().values
    return type(split)(split.images[chosen], split.labels[chosen])


# ------------------------------------------------------------------------------------------------------ from the driver


@dataclass(frozen=True)
class Audit:
    """What an audit of a sweep has to do, and what is done already."""

    plan: SweepPlan
    results: Results
    options: AuditOptions

    def __post_init__(self) -> None:
        """Refuse what would give no numbers, before anything is spent."""
        if not self.results.finished:
            raise InputError(f"no trial of {self.plan.name!r} has finished: there is nothing to audit yet")
        if self.plan.space.evaluation.eval_sensitivity_epsilon == 0:
            raise InputError("eval_sensitivity_epsilon = 0: an audit needs an attack, and so a budget above 0")
        for name in self.plan.objectives.names:
            if name not in MEASURED:
                raise InputError(f"objective {name!r} can't be audited: {did_you_mean(name, MEASURED)}")

    @property
    def folder(self) -> Path:
        return self.plan.folder / FOLDER

    def candidates(self) -> list[TrialRecord]:
        """All finalists, the most wanted first."""
        return choose_finalists(self.results, images=self.results.facts["validation_images"])

    def fresh_seeds(self) -> list[int]:
        """Seeds that no trial of the sweep has had: one for the twins, then those of the finalists. Asking for more
        leaves the first as they are."""
        used = {record.seed for record in self.results.trials.values()}
        generator = np.random.default_rng(self.plan.seed)
        seeds: list[int] = []
        while len(seeds) <= self.options.seeds:
            seed = int(generator.integers(2**31))
            seeds += [seed] if seed not in used and seed not in seeds else []
        return seeds

    def jobs(self) -> list[Job]:
        """Seed by seed: what a stopped audit has done compares all finalists."""
        records = self.candidates()[: self.options.finalists]
        return [
            Job(f"{record.number:04d}-{seed}", record.number, {**record.config, "seed": seed})
            for seed in self.fresh_seeds()[1:]
            for record in records
        ]

    def twin(self, job: Job) -> Job:
        """The undefended model beside a finalist's; the same for all finalists of one architecture and optimiser."""
        kept = {name: job.config[name] for name in TWIN_KEEPS if name in job.config}
        config = TrialConfig(**kept, seed=self.fresh_seeds()[0]).to_dict()
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
        return Job(f"undefended-{digest}", -1, config)

    def find(self, job: Job) -> Audited | None:
        """The result of a job, if it was made for the same configuration by the same options."""
        stored = read_json(self.folder / result_file(job))
        if stored is None or (stored.get("config"), stored.get("judged_by")) != (job.config, self.options.judged_by):
            return None
        return Audited(**stored)

    def missing(self) -> list[Job]:
        return [job for job in self.jobs() if self.find(job) is None]

    def finalists(self) -> list[Finalist]:
        """Those with a result, the best in the first objective first."""
        runs: dict[int, list[Audited]] = {}
        for audited in filter(None, map(self.find, self.jobs())):
            runs.setdefault(audited.number, []).append(audited)
        finalists = [Finalist(self.results.trials[number], tuple(found)) for number, found in runs.items()]
        first, sign = self.plan.objectives.names[0], -1 if self.plan.objectives.maximise[0] else 1
        return sorted(finalists, key=lambda one: (sign * one.selected[first], one.record.number))


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file of ours holds; None where there is none, or a damaged one, which is then made again."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def run_audit(audit: Audit, console: Console) -> bool:
    """Do what is not done yet; False if it was interrupted, and so can be gone on with.

    Raises:
        InputError: if the cluster can't give what one trial needs, the data can't be had or is not the sweep's, or
            nothing can be judged on the test split.
    """
    if audit.results.facts and not audit.missing():
        return True
    # In this order: Ray installs a handler of its own for SIGTERM.
    with Line(console) as line, ray_session(), Interruption() as interruption:
        crew, task = Crew(audit.plan, concurrency(audit.plan), interruption, line), make_task(audit.plan)
        facts = prepare(task, audit.plan, line.prepare, interruption)
        if facts is None:
            return False
        record_facts(audit.plan.folder, facts)
        audit.results.facts = facts
        crew.work("preparing", prepare_test, {"the test split": (task,)})
        jobs = audit.missing()
        twins = {job.name: audit.twin(job) for job in jobs}
        lost = crew.work("training", train_twin, {t.name: (task, t, audit.folder) for t in twins.values()})
        known = {name: None if twin.name in lost else twin for name, twin in twins.items()}
        work = {job.name: (task, job, known[job.name], audit.folder, audit.options) for job in jobs}
        crew.work("auditing", audit_one, work)
    return not interruption.asked


class Crew(NamedTuple):
    """Ray tasks on the plan's resources."""

    plan: SweepPlan
    concurrent: int
    interruption: Interruption
    line: Line

    def work(self, doing: str, function: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]]) -> dict[str, str]:
        """Call a function for every job, by name, until all are done or somebody asked to stop; why some failed."""
        remote = ray.remote(function).options(
            num_cpus=self.plan.cpus_per_trial, num_gpus=self.plan.gpus_per_trial, max_retries=LOST_WORKER_RETRIES
        )
        waiting, running, failed = deque(jobs), {}, {}
        self.line.begin(doing, len(jobs))
        while (waiting or running) and not self.interruption.asked:
            while waiting and len(running) < self.concurrent:
                name = waiting.popleft()
                running[remote.remote(*jobs[name])] = name
            self.line.show(running.values())
            for ended in ray.wait(list(running), timeout=POLL_SECONDS)[0]:
                name, reason = running.pop(ended), outcome(ended)
                self.line.ended(name, reason)
                failed |= {name: reason} if reason else {}
        return failed


def outcome(ended: ray.ObjectRef) -> str:
    """Why a task failed, or nothing."""
    try:
        return ray.get(ended) or ""
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    except RayError:
        return f"its worker was lost {LOST_WORKER_RETRIES + 1} times (killed or out of memory)"


class Line:
    """What an audit is doing: one living line on a terminal, a plain line per ended job elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.spinner = console.status("Starting Ray ...")
        self.doing, self.done, self.total, self.begun = "", 0, 0, 0.0
        self.said: set[str] = set()

    def __enter__(self) -> Line:
        if self.console.is_terminal:
            self.spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.spinner.stop()

    def prepare(self, stage: str, done: int, total: int) -> None:
        """As a `Progress` of the driver."""
        self.spinner.update(f"Preparing: {escape(stage)} {done}/{total}")
        if not self.console.is_terminal and stage not in self.said:
            self.said.add(stage)
            self.console.print(f"preparing: {stage}", markup=False)

    def begin(self, doing: str, total: int) -> None:
        """The next so many jobs."""
        self.doing, self.done, self.total, self.begun = doing, 0, total, time.monotonic()

    def show(self, running: Iterable[str]) -> None:
        self.spinner.update(f"{self.progress()}: {escape(', '.join(running))}")

    def ended(self, name: str, reason: str) -> None:
        """A job is done, or failed for a reason, which stays on the screen."""
        self.done += 1
        if reason:
            self.console.print(f"{name} failed: {reason}", markup=False)
        elif not self.console.is_terminal:
            self.console.print(f"{self.progress()}: {name}", markup=False)

    def progress(self) -> str:
        gone = time.monotonic() - self.begun
        left = f", about {duration(gone / self.done * (self.total - self.done))} left" if self.done else ""
        return f"{self.doing} {self.done}/{self.total}; {duration(gone)} gone{left}"


# --------------------------------------------------------------------------------------------------------- the outcome


def show_audit(audit: Audit, console: Console) -> bool:
    """Summary, table, warnings and pictures; False if there is nothing to show."""
    from sweep.figures import save_figure

    finalists = audit.finalists()
    if not finalists:
        return False
    console.print()
    console.print(summary(audit, finalists), "\n", sep="", markup=False)
    console.print(*report(audit, finalists), *warnings(finalists), sep="\n", markup=False)
    save_figure(audit_figure(audit, finalists), audit.folder / FRONT_PICTURE)
    save_figure(curves_figure(audit, finalists), audit.folder / CURVES_PICTURE)
    console.print(f"\npicture  {audit.folder / FRONT_PICTURE}\ncurves   {audit.folder / CURVES_PICTURE}", markup=False)
    return True


def command(audit: Audit) -> str:
    """The command that goes on with an audit."""
    given = {name: getattr(audit.options, name) for name in OPTIONS}
    words = [f"{_flag(name)} {value}" for name, value in given.items() if value != OPTIONS[name].default]
    if Path(audit.plan.storage) != storage_folder():
        words.append(f"--storage {shlex.quote(audit.plan.storage)}")
    return " ".join(["otsweep audit", audit.plan.name, *words])


def judge_finalists(audit: Audit, finalists: Sequence[Finalist]) -> list[str]:
    """The verdict on each."""
    objectives = audit.plan.objectives
    selected = cloud([one.selected for one in finalists], objectives, images=audit.results.facts["validation_images"])
    audited = cloud([one.mean for one in finalists], objectives, images=finalists[0].images)
    return verdicts(selected, audited, objectives.names)


def summary(audit: Audit, finalists: Sequence[Finalist]) -> str:
    """What of the front held, and how it was judged."""
    plan, options, facts = audit.plan, audit.options, audit.results.facts
    evaluation, mean = plan.space.evaluation, finalists[0].mean
    left_out = len(audit.candidates()) - len(finalists)
    return (
        f"{evaluation.dataset}: {judge_finalists(audit, finalists).count('held')} of {len(finalists)} finalists held"
        f"{f' ({left_out} more were not audited)' if left_out else ''}. "
        f"Selected: {front_line([one.selected for one in finalists], finalists, plan.objectives)}; "
        f"audited: {front_line([one.mean for one in finalists], finalists, plan.objectives)}.\n"
        f"Audited on {finalists[0].images} test images, mean ± standard deviation over {options.seeds} fresh seeds: "
        f"sensitivity under {evaluation.eval_sensitivity_norm} {evaluation.eval_sensitivity_epsilon:.3g} (APGD-CE, "
        f"APGD-T and the embedding's, {options.steps} steps; Square, {options.queries} queries); invariance under "
        f"{evaluation.eval_invariance_norm} {evaluation.eval_invariance_epsilon:.3g} on "
        f"{mean['invariance_changed_size']:.0f} changed images, the per-model attack on {mean['adversary_size']:.0f}, "
        f"judged by the oracle (a proxy for people; on clean "
        f"validation images it answers {percent(facts['oracle_coverage'])} and is right on "
        f"{percent(facts['oracle_accuracy'])} of those)."
    )


def front_line(points: Sequence[Mapping[str, float]], finalists: Sequence[Finalist], objectives: Objectives) -> str:
    """`front 003, 001, hypervolume 0.2345` of the finalists at these points."""
    values = np.array([[point[name] for name in objectives.names] for point in points])
    on_front = pareto.front_mask(values, objectives)
    numbers = [f"{one.record.number:03d}" for one, member in zip(finalists, on_front, strict=True) if member]
    return f"front {', '.join(numbers)}, hypervolume {pareto.hypervolume(values, objectives):.4f}"


def report(audit: Audit, finalists: Sequence[Finalist]) -> list[str]:
    """The table: per finalist its verdict and configuration, then a line for every number. Within 80 columns."""
    lines = [f"{'trial':5}  {'':20}  {'selected':>8}  {'audited':>14}  {'95% interval':>16}"]
    for one, verdict in zip(finalists, judge_finalists(audit, finalists), strict=True):
        seeds = "" if len(one.runs) == audit.options.seeds else f" ({len(one.runs)} of {audit.options.seeds} seeds)"
        lines.append(f"  {one.record.number:03d}  {verdict}{seeds}: {label(audit.plan.space, one.record.config)}")
        lines += [row(one, name) for name in ROWS]
    return lines


def row(one: Finalist, name: str) -> str:
    """A number as it was selected, audited, and the interval of the latter where its images are counted."""
    selected = percent(one.selected[name]) if name in one.selected else ""
    audited = f"{percent(one.mean[name])} ± {100 * one.spread(name):4.1f}"
    interval = ""
    if name in MEASURED or name in COUNTS:
        low, high = share_interval(name, one.mean, images=one.images)
        interval = f"{percent(low)} to {percent(high)}"
    return f"{'':5}  {ROWS[name]:20}  {selected:>8}  {audited:>14}  {interval:>16}"


def warnings(finalists: Sequence[Finalist]) -> list[str]:
    """Every failed check against a meaningless attack, by trial and seed."""
    return [
        f"trial {one.record.number:03d}, seed {run.seed}: {warning}"
        for one in finalists
        for run in one.runs
        for warning in run.warnings
    ]


# -------------------------------------------------------------------------------------------------------- the pictures


def audit_figure(audit: Audit, finalists: Sequence[Finalist]) -> Figure:
    """The audited front beside the selected one, between the first two objectives; every finalist's way is drawn."""
    from matplotlib.figure import Figure

    from sweep import figures

    objectives = audit.plan.objectives
    plane = Objectives(
        objectives.names[:2], objectives.maximise[:2], tuple(100 * value for value in objectives.reference[:2])
    )
    records = [audited_record(one) for one in finalists]
    before = 100 * np.array([[one.selected[name] for name in plane.names] for one in finalists])
    after = 100 * np.array([[one.mean[name] for name in plane.names] for one in finalists])
    everyone = figures.front_spots(records, after, np.ones(len(after), dtype=bool), None)
    on_front, was_front = pareto.front_mask(after, plane), pareto.front_mask(before, plane)
    intervals = figures.wilson_segments(everyone, plane, finalists[0].images)
    with figures.house_style():
        figure = Figure(figsize=(7.2, 5.8), dpi=figures.DPI, layout="constrained")
        axes = figure.add_subplot()
        figures.draw_axes(axes, np.vstack([before, after, *intervals]), plane)
        draw_selected(axes, before, after, figures.front_spots(records, before, was_front, None), plane)
        figures.draw_trials(axes, records, after, on_front)
        figures.draw_intervals(axes, intervals)
        figures.draw_staircase(axes, figures.front_spots(records, after, on_front, None), plane)
        figures.draw_title(axes, f"{audit.plan.name}, audited", budgets(audit, finalists))
        figures.draw_legend(figure, axes, with_dominated=not on_front.all())
        figures.draw_labels(figure, axes, everyone, np.vstack([before, after]), plane)
    return figure


def audited_record(one: Finalist) -> TrialRecord:
    """The audited numbers in the shape that pictures are drawn from."""
    return TrialRecord(one.record.number, config=one.record.config, reports=[{**one.mean, "final": True}])


def draw_selected(axes: Axes, before: np.ndarray, after: np.ndarray, spots: Sequence[Any], plane: Objectives) -> None:
    """Where the finalists (n, 2) were, hollow, with their front and the way that each went, in percent."""
    from matplotlib.collections import LineCollection

    from sweep.figures import MUTED, staircase

    axes.add_collection(
        LineCollection(list(np.stack([before, after], axis=1)), colors=MUTED, linewidths=0.9, linestyles=":")
    )
    axes.scatter(*before.T, s=28, facecolors="white", edgecolors=MUTED, linewidths=1, zorder=4, label="selected")
    edge = staircase(spots, plane)
    axes.plot(*edge.T, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=3, label="selected front")


def budgets(audit: Audit, finalists: Sequence[Finalist]) -> str:
    """What the pictures show, in two lines."""
    from sweep.figures import NORMS

    evaluation, options = audit.plan.space.evaluation, audit.options
    return (
        f"{evaluation.dataset}; sensitivity: {NORMS[evaluation.eval_sensitivity_norm]} "
        f"{evaluation.eval_sensitivity_epsilon:g}, full set of attacks, {options.steps} steps; invariance: "
        f"{NORMS[evaluation.eval_invariance_norm]} {evaluation.eval_invariance_epsilon:g}\n"
        f"selected on validation; audited on {finalists[0].images} test images, mean of {options.seeds} fresh seeds"
    )


def curves_figure(audit: Audit, finalists: Sequence[Finalist]) -> Figure:
    """Accuracy over the budget, a line per finalist: the mean over its seeds, in a band from the worst to the best."""
    import matplotlib
    from matplotlib.figure import Figure

    from sweep import figures

    evaluation = audit.plan.space.evaluation
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(finalists)))
    with figures.house_style():
        figure = Figure(figsize=(7.2, 5.0), dpi=figures.DPI, layout="constrained")
        axes = figure.add_subplot()
        for one, colour in zip(finalists, colours, strict=True):
            epsilons = one.runs[0].curve["epsilons"]
            accuracies = 100 * np.array([run.curve["accuracies"] for run in one.runs])
            name = f"{one.record.number:03d}: area {one.mean['curve_area']:.3f}"
            axes.fill_between(epsilons, accuracies.min(0), accuracies.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(epsilons, accuracies.mean(0), color=colour, marker="o", markersize=3.5, label=name)
        axes.axvline(evaluation.eval_sensitivity_epsilon, color=figures.MUTED, linestyle=":", linewidth=1)
        axes.set_xlabel(f"Sensitivity epsilon ({figures.NORMS[evaluation.eval_sensitivity_norm]}, pixel units)")
        axes.set_ylabel("Accuracy (%)")
        axes.set_ylim(-1, 101)
        axes.grid(color="#E8E8E8", linewidth=0.6)
        steps = max(1, audit.options.steps // 2)
        note = f"APGD-CE and APGD-T, {steps} steps\ndotted: the budget that trials are judged by"
        figures.draw_title(axes, f"{audit.plan.name}: accuracy over epsilon", f"{evaluation.dataset}; {note}")
        figures.draw_legend(figure, axes, with_dominated=False)
    return figure
