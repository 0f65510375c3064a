"""What a trial trains with (`TrialConfig`) and what it is judged by (`EvaluationConfig`).

One name per knob everywhere: a field here is the YAML key, the `--set` key and the MLflow parameter. This module
imports no torch, so that a sweep's driver can read and check configurations without paying for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, get_type_hints


class OtsweepError(Exception):
    """Every error that otsweep raises on purpose.

    OtsweepError
    ├── InputError     the user's mistake: one message, exit status 2, no traceback
    ├── TrialFailed    this trial can't go on (a number that is not finite); the sweep goes on without it
    └── StorageFailed  the storage takes no files (full, gone); what was recorded stays, and can be gone on with
    """


class InputError(OtsweepError, ValueError):
    """A value, name, file or address that the user gave is wrong; the message quotes it and names what is right."""


class TrialFailed(OtsweepError, RuntimeError):
    """The trial produced something that must not enter a front; the message is the reason shown to the user."""


class StorageFailed(OtsweepError):
    """The storage refused a file, also when it was asked again for a while; the message names both."""


DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
ARCHITECTURES = ("cnn", "mlp", "resnet18")
PACKABLE = ("cnn", "mlp")
"""Architectures whose trials can share a vectorised step: batch normalisation's running statistics are changed in place
by a pass, which `torch.vmap` can't do for several models."""
REGULARIZERS = ("none", "triplet", "sinkhorn", "ot_triplet")
GROUND_METRICS = ("cosine", "euclidean")
SENSITIVITY_NORMS = ("linf", "l2")
INVARIANCE_NORMS = ("linf", "l0")

LARGEST_L2 = 64
"""An upper bound on a useful L2 budget: a CIFAR-10 image has 3,072 pixel values, so no two lie
further than 55 apart."""


SHORT_NAMES = {
    "sensitivity_weight": "ws",
    "invariance_weight": "wv",
    "norm_weight": "wn",
    "sensitivity_epsilon": "eps",
    "invariance_epsilon": "epsv",
    "regularizer": "R",
    "margin": "m",
    "learning_rate": "lr",
    "cross_entropy_on": "ce",
    "entropy": "ent",
    "sensitivity_steps": "steps",
}
"""Short names for a trial's label in tables and pictures; a knob without one goes by its full name."""

FEW_WORDS = 8
"""So many known words are all shown beside the nearest one."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A clause that names the nearest right word, and all of them where they are few or none is near."""
    known = list(known)
    meant = [name for name, short in SHORT_NAMES.items() if short == word and name in known]
    nearest = meant or difflib.get_close_matches(str(word).lower(), known, n=1, cutoff=0.5)
    if nearest and len(known) > FEW_WORDS:
        return f"did you mean {nearest[0]!r}?"
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}known: {', '.join(known)}"


def knob(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with its range: `low` and `high` are allowed themselves, `above` is not."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, "choices": choices})


class _Checked:
    """Typed, range-checked construction that both records share."""

    def __post_init__(self) -> None:
        for name, spec in self.fields().items():
            object.__setattr__(self, name, check_value(name, getattr(self, name), spec))
        self._check_together()

    def _check_together(self) -> None:
        """Rules that tie several fields."""

    @classmethod
    def fields(cls) -> dict[str, dataclasses.Field]:
        """Every knob by name, in order."""
        return {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from keys and values; an unknown key is answered with the nearest known one."""
        for key in values:
            if key not in cls.fields():
                raise InputError(f"unknown setting {key!r}: {did_you_mean(key, cls.fields())}")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; checked again."""
        return type(self).from_mapping({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name, ready for YAML, JSON or Parquet."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def field_type(spec: dataclasses.Field) -> type:
    """The plain type of a knob: bool, int, float or str."""
    return {"bool": bool, "int": int, "float": float, "str": str}[str(spec.type)]


def check_value(name: str, value: Any, spec: dataclasses.Field) -> Any:
    """`value` in the knob's own type.

    Raises:
        InputError: naming the field, the value and the range or type that would be right.
    """
    kind, limits = field_type(spec), spec.metadata
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not (number if kind is float else isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
        raise InputError(f"{name} = {quoted(value)}: must be {describe_type(spec)}")
    with contextlib.suppress(OverflowError):  # an integer beyond all floats is beyond every range too
        value = kind(value)
    if limits["choices"] is not None and value not in limits["choices"]:
        raise InputError(f"{name} = {quoted(value)}: {did_you_mean(value, limits['choices'])}")
    if kind in (int, float) and not in_range(value, limits):
        raise InputError(f"{name} = {quoted(value)}: must be {describe_range(spec)}")
    return value


def quoted(value: object) -> str:
    """`value` as an error shows it: cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def in_range(value: float, limits: Mapping[str, Any]) -> bool:
    """Whether a number is finite and inside a knob's limits."""
    return (
        (isinstance(value, int) or math.isfinite(value))
        and (limits["low"] is None or value >= limits["low"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["high"] is None or value <= limits["high"])
    )


def describe_type(spec: dataclasses.Field) -> str:
    """The type of a knob in words, and its range."""
    kind = field_type(spec)
    if kind is bool:
        return "true or false"
    if kind is str:
        return describe_range(spec) if spec.metadata["choices"] else "a word"
    return f"a {'whole ' if kind is int else ''}number, {describe_range(spec)}"


def describe_range(spec: dataclasses.Field) -> str:
    """The range of a knob in words."""
    low, high, above = (spec.metadata[key] for key in ("low", "high", "above"))
    if spec.metadata["choices"] is not None:
        return "one of " + ", ".join(spec.metadata["choices"])
    start = f"above {above}" if above is not None else f"at least {low}" if low is not None else ""
    if high is None:
        return start or "a finite number"
    return f"{start} and at most {high}" if start else f"at most {high}"


def parse_settings(pairs: Iterable[str], *records: type[_Checked]) -> dict[str, Any]:
    """`["margin=0.1", ...]` as given to `--set`, read in the type of the field each one names.

    Raises:
        InputError: for a pair without `=`, an unknown key, or a value that is not of the field's type.
    """
    known = {name: spec for record in records for name, spec in record.fields().items()}
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise InputError(f"--set {pair!r}: write it as key=value")
        if key not in known:
            raise InputError(f"unknown setting {key!r}: {did_you_mean(key, known)}")
        settings[key] = check_value(key, _parse(text.strip(), field_type(known[key])), known[key])
    return settings


def _parse(text: str, kind: type) -> Any:
    """Text in a knob's type where it can be; else the text itself, which `check_value` then refuses by name."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is str:
        return text
    try:
        return float(text)
    except ValueError:
        return text


def check_budget(name: str, epsilon: float, norm: str) -> None:
    """An L0 or Linf budget is a share of the pixel range or of the pixels and so lies in [0, 1]."""
    if norm != "l2" and epsilon > 1:
        raise InputError(f"{name} = {epsilon!r}: must be at least 0 and at most 1 (pixel units of [0,1] images)")


@dataclass(frozen=True)
class TrialConfig(_Checked):
    """One trial: model, objective, training budgets, optimiser. Flat, frozen, checked at construction."""

    architecture: str = knob("cnn", choices=ARCHITECTURES)
    """`cnn` is the authors' network made general, `mlp` two hidden layers, `resnet18` the CIFAR variant."""

    embedding_size: int = knob(32, low=2, high=4096)
    """D, the width of the embedding that the linear head reads and the regularisers act on."""

    regularizer: str = knob("none", choices=REGULARIZERS)
    """R: `none`, `triplet` (batch-hard), `sinkhorn` (debiased divergence) or `ot_triplet` (per-class transport)."""

    regularizer_on: str = knob("embedding", choices=("embedding", "logits"))
    """What R compares between perturbed and clean images: their embeddings, or their logits (as SAT does)."""

    ground_metric: str = knob("cosine", choices=GROUND_METRICS)
    """Distance between embeddings: 1 - cosine, or Euclidean (squared where it is a transport cost)."""

    sensitivity_weight: float = knob(0.0, low=0, high=1000)
    """w_s, weight of R between sensitivity-perturbed and clean embeddings; 0 leaves the term out."""

    invariance_weight: float = knob(0.0, low=0, high=1000)
    """w_v, weight of R between invariance-perturbed and clean embeddings; 0 leaves the term out."""

    norm_weight: float = knob(0.0, low=0, high=1000)
    """w_n, weight of the mean Euclidean norm of the embeddings; 0 leaves the term out."""

    trades_weight: float = knob(0.0, low=0, high=1000)
    """beta of TRADES: weight of KL(clean || sensitivity-perturbed) of the predictions; 0 leaves the term out."""

    margin: float = knob(0.05, low=0, high=100)
    """m of `triplet` and `ot_triplet`, in units of the ground metric."""

    mining: str = knob("hard", choices=("hard", "semihard"))
    """Which negatives `triplet` takes: the nearest, or the nearest beyond the positive (avoids collapse)."""

    transport: str = knob("entropic", choices=("entropic", "exact"))
    """How `sinkhorn` and `ot_triplet` solve their transport: with the entropy below, batched; or exactly, by POT on the
    CPU, one problem after the other: for small batches."""

    entropy: float = knob(0.05, low=0.01, high=10)
    """Entropic regularisation of `sinkhorn` and `ot_triplet`, in units of the ground cost."""

    label_cost: float = knob(1.0, low=0, high=1000)
    """Added to the ground cost of `sinkhorn` between different labels; 0 makes it blind to permutations (SAT)."""

    cross_entropy_on: str = knob("clean", choices=("clean", "sensitivity", "invariance"))
    """X_train, the images that the cross-entropy sees."""

    sensitivity_norm: str = knob("linf", choices=SENSITIVITY_NORMS)
    """Norm of the training sensitivity attack."""

    sensitivity_epsilon: float = knob(0.1, low=0, high=LARGEST_L2)
    """Training budget of the sensitivity attack, in pixel units; at most 1 for Linf."""

    sensitivity_steps: int = knob(7, low=1, high=1000)
    """Steps of the training attack: 1 is FGSM from the image, more is PGD from a random start."""

    sensitivity_objective: str = knob("cross_entropy", choices=("cross_entropy", "kl", "transport"))
    """What the training attack maximises: cross-entropy, KL from the clean prediction (TRADES), or batch transport
    between clean and perturbed logits (feature scattering)."""

    invariance_norm: str = knob("linf", choices=INVARIANCE_NORMS)
    """Norm of the training invariance attack; the L0 budget is the share of pixels that may change."""

    invariance_epsilon: float = knob(0.3, low=0, high=1)
    """Training budget of the invariance attack: pixel units for Linf, share of pixels for L0."""

    learning_rate: float = knob(1e-3, above=0, high=10)
    """Step size of AdamW."""

    weight_decay: float = knob(0.0, low=0, high=10)
    """Decoupled weight decay of AdamW."""

    batch_size: int = knob(128, low=2, high=65536)
    """Images per step; the regularisers see pairs inside a batch."""

    epochs: int = knob(10, low=1, high=100_000)
    """Passes over the training split."""

    seed: int = knob(0, low=0, high=2**31 - 1)
    """Decides initial weights, the order of images and the attacks' random starts."""

    def _check_together(self) -> None:
        check_budget("sensitivity_epsilon", self.sensitivity_epsilon, self.sensitivity_norm)

    @property
    def uses_sensitivity(self) -> bool:
        """Whether the objective has any term on sensitivity-perturbed images."""
        regularised = self.regularizer != "none" and self.sensitivity_weight > 0
        return regularised or self.trades_weight > 0 or self.cross_entropy_on == "sensitivity"

    @property
    def uses_invariance(self) -> bool:
        """Whether the objective has any term on invariance-perturbed images."""
        regularised = self.regularizer != "none" and self.invariance_weight > 0
        return regularised or self.cross_entropy_on == "invariance"


def check_packable(config: TrialConfig) -> None:
    """Raise InputError for a configuration that can't share a vectorised step."""
    if config.architecture not in PACKABLE:
        raise InputError(
            f"architecture = {config.architecture!r}: can't be packed (batch normalisation), "
            f"must be one of {', '.join(PACKABLE)}; or train it without a pack"
        )
    if config.transport == "exact" and config.regularizer in ("sinkhorn", "ot_triplet"):
        raise InputError(
            f"transport = {config.transport!r}: can't be packed (it is solved problem by problem), "
            "must be 'entropic'; or train it without a pack"
        )


@dataclass(frozen=True)
class EvaluationConfig(_Checked):
    """What a trial is judged by: the data, its split and the attacks. Fixed for a whole sweep, or the points of its
    front could not be compared."""

    dataset: str = knob("digits", choices=DATASETS)
    """`digits` is scikit-learn's bundled 8x8 set; the others load through torchvision."""

    split_seed: int = knob(0, low=0, high=2**31 - 1)
    """Decides which images are training, validation and test."""

    train_size: int = knob(0, low=0, high=1_000_000)
    """Training images used, the first so many of the shuffled split; 0 takes all."""

    validation_size: int = knob(0, low=0, high=1_000_000)
    """Validation images used for clean and sensitivity accuracy; 0 takes all."""

    eval_sensitivity_norm: str = knob("linf", choices=SENSITIVITY_NORMS)
    """Norm of the judging sensitivity attack."""

    eval_sensitivity_epsilon: float = knob(0.2, low=0, high=LARGEST_L2)
    """Budget of the judging sensitivity attack, in pixel units; at most 1 for Linf."""

    eval_sensitivity_steps: int = knob(20, low=1, high=10_000)
    """PGD steps of the judging attack."""

    eval_sensitivity_restarts: int = knob(1, low=1, high=1000)
    """Random restarts of the judging attack; an image counts only if it survives all."""

    eval_invariance_norm: str = knob("linf", choices=INVARIANCE_NORMS)
    """Norm of the judging invariance attack."""

    eval_invariance_epsilon: float = knob(0.3, low=0, high=1)
    """Budget of the judging invariance attack: pixel units for Linf, share of pixels for L0."""

    eval_invariance_size: int = knob(0, low=0, high=1_000_000)
    """Validation images that the invariance attack starts from; 0 takes all."""

    def _check_together(self) -> None:
        check_budget("eval_sensitivity_epsilon", self.eval_sensitivity_epsilon, self.eval_sensitivity_norm)


_PART = {"validation_size": 2000, "eval_invariance_size": 500}
"""Of a large validation split, what a laptop can attack after every epoch."""

DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {},
    "mnist": {**_PART, "eval_sensitivity_epsilon": 0.3, "sensitivity_epsilon": 0.3},
    "fashion_mnist": {**_PART, "eval_sensitivity_epsilon": 0.1, "sensitivity_epsilon": 0.1},
    "cifar10": {
        **_PART,
        "architecture": "resnet18",
        "eval_sensitivity_epsilon": 8 / 255,
        "sensitivity_epsilon": 8 / 255,
    },
}
"""What differs from the defaults above for a single trial on each data set: the budgets its literature uses."""


for _record in (TrialConfig, EvaluationConfig):
    assert all(t in (bool, int, float, str) for n, t in get_type_hints(_record).items() if n in _record.fields())
