"""The configurations of a trial: `TrialConfig`, its training, and `EvaluationConfig`, its evaluation.

One name per knob everywhere: a field here is the YAML key, the `--set` key and the MLflow parameter. This module does
not import torch, so that a sweep's driver can read and check configurations at no cost.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_type_hints

from trainer.errors import InputError
from trainer.fields import CheckedFields, check_budget, check_value, knob

DATASETS = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist", "usps", "cifar10", "svhn")
_OWN_DATA = ("folder:PATH", "npz:PATH", "python:MODULE:FUNCTION")
"""Forms of `dataset` for data of one's own (`trainer/README.md`)."""
ARCHITECTURES = ("cnn", "mlp", "resnet18")
_PACKABLE = ("cnn", "mlp")
"""Architectures whose trials can share a vectorised step. `resnet18` is missing: a pass changes batch normalisation's
running statistics in place, which `torch.vmap` can't do for several models."""
_CERTIFIABLE = ("cnn", "mlp")
"""Architectures that the certified term can train. Interval bounds grow with every layer: those of a new `resnet18` at
8/255 leave margins of -6e20, where those of `cnn` leave -1e4, and no ramp or learning rate bridges that."""
_VIEWS = ("clean", "sensitivity", "invariance")
REGULARIZERS = ("none", "triplet", "sinkhorn", "ot_triplet")
OWN_KNOBS = ("own_a", "own_b", "own_c")
"""Knobs of a regulariser or an attack of one's own, which says what each means and its range."""
_GROUND_METRICS = ("cosine", "euclidean")
_SENSITIVITY_NORMS = ("linf", "l2")
_INVARIANCE_NORMS = ("linf", "l0")

UNANIMOUS = "unanimous"
"""Name of the judge of earlier versions, which gave one label or none: what it judged can be shown, not added to."""

_LARGEST_L2 = 64
"""Upper limit of an L2 budget: a CIFAR-10 image has 3,072 pixel values, so no two are more than 55.4 apart."""


@dataclass(frozen=True)
class TrialConfig(CheckedFields):
    """The configuration of one trial: model, objective, training budgets, optimiser. Checked at construction."""

    architecture: str = knob("cnn", choices=ARCHITECTURES, forms=("python:MODULE:FACTORY",))
    """`cnn` is the authors' network made general, `mlp` two hidden layers, `resnet18` the CIFAR variant; or a network
    of one's own, that `factory(shape, classes, embedding_size)` returns."""

    embedding_size: int = knob(32, low=2, high=4096)
    """D, the width of the embedding that the linear head reads and the regularisers act on."""

    regularizer: str = knob("none", choices=REGULARIZERS, forms=("python:MODULE:FUNCTION",))
    """R: `none`, `triplet` (batch-hard), `sinkhorn` (debiased divergence), `ot_triplet` (pairs by transport), or a
    function of one's own (`trainer/README.md`)."""

    regularizer_on: str = knob("embedding", choices=("embedding", "logits"))
    """The side of the head on which R compares perturbed and clean images: `embedding`, or `logits` (as SAT does)."""

    ground_metric: str = knob("cosine", choices=_GROUND_METRICS)
    """Distance between embeddings: 1 - cosine, or Euclidean (squared where it is a transport cost)."""

    clean_ce_weight: float = knob(1.0, low=0, high=1000)
    """a_c, weight of the cross-entropy on clean images; 0 leaves the term out, as for every weight below. If all three
    are 0, nothing teaches the classes."""

    sensitivity_ce_weight: float = knob(0.0, low=0, high=1000)
    """a_s, weight of the cross-entropy on sensitivity-perturbed images; alone it is PGD training."""

    invariance_ce_weight: float = knob(0.0, low=0, high=1000)
    """a_v, weight of the cross-entropy on invariance-perturbed images with the teacher's labels."""

    sensitivity_weight: float = knob(0.0, low=0, high=1000)
    """w_s, weight of R between sensitivity-perturbed and clean embeddings."""

    invariance_weight: float = knob(0.0, low=0, high=1000)
    """w_v, weight of R between invariance-perturbed and clean embeddings."""

    norm_weight: float = knob(0.0, low=0, high=1000)
    """w_n, weight of the mean Euclidean norm of the embeddings."""

    trades_weight: float = knob(0.0, low=0, high=1000)
    """beta of TRADES: weight of KL(clean || sensitivity-perturbed) of the predictions."""

    certified_ce_weight: float = knob(0.0, low=0, high=1000)
    """a_b, weight of the cross-entropy on the worst logits that proven bounds allow around clean images. Until the end
    of the ramp a part of it weighs the clean cross-entropy instead."""

    certified_epsilon: float = knob(0.1, low=0, high=1)
    """Training budget of the certified term, Linf in pixel units."""

    certified_ramp: float = knob(0.5, low=0, high=1)
    """Share of the training over which budget and weight of the certified term grow linearly, step by step, from 0 to
    their values; 0 has both whole from the first step."""

    certified_method: str = knob("ibp", choices=("ibp", "crown-ibp"))
    """Bounds of the certified term: `ibp` (intervals), or `crown-ibp`, whose last bound is CROWN's at the ramp's begin
    and the interval's at its end."""

    margin: float = knob(0.05, low=0, high=100)
    """m of `triplet` and `ot_triplet`, in units of the ground metric."""

    label_smoothing: float = knob(0.0, low=0, high=1)
    """Share of a label's weight that the cross-entropies spread evenly over all classes, as PyTorch's do; an attack
    maximises the cross-entropy of the label itself."""

    mining: str = knob("hard", choices=("hard", "semihard"))
    """The negatives of `triplet`: the nearest, or the nearest beyond the positive, which avoids collapse."""

    negative_share: float = knob(0.0625, low=0.01, high=1)
    """rho of `ot_triplet`: the share of the other classes' mass that each class of anchors is transported to; 1 is all
    of it, which sees little but the mean cost, and towards 0 it is the nearest images alone."""

    transport: str = knob("entropic", choices=("entropic", "exact"))
    """The solver of `sinkhorn` and `ot_triplet`: `entropic`, batched, with the entropy below; or `exact`, by POT on the
    CPU, one problem after the other, for small batches."""

    entropy: float = knob(0.05, low=0.01, high=10)
    """Entropic regularisation of `sinkhorn` and `ot_triplet`, in units of the ground cost."""

    label_cost: float = knob(1.0, low=0, high=1000)
    """Added to the ground cost of `sinkhorn` between different labels; 0 makes it blind to permutations (SAT)."""

    own_a: float = knob(0.0, low=-1e6, high=1e6)
    """First number of a regulariser or an attack of one's own, which declares its range; 0 where none does."""

    own_b: float = knob(0.0, low=-1e6, high=1e6)
    """Second number of a regulariser or an attack of one's own."""

    own_c: float = knob(0.0, low=-1e6, high=1e6)
    """Third number of a regulariser or an attack of one's own."""

    sensitivity_attack: str = knob("pgd", choices=("pgd",), forms=("python:MODULE:FUNCTION",))
    """The training sensitivity attack: `pgd`, of which one step from the image is FGSM, or a function of one's own
    (`trainer/README.md`)."""

    sensitivity_norm: str = knob("linf", choices=_SENSITIVITY_NORMS)
    """Norm of the training sensitivity attack."""

    sensitivity_epsilon: float = knob(0.1, low=0, high=_LARGEST_L2)
    """Training budget of the sensitivity attack, in pixel units; at most 1 for Linf."""

    sensitivity_steps: int = knob(7, low=1, high=1000)
    """Steps of the training attack: 1 is FGSM from the image, more is PGD from a random start; what one's own makes of
    it is its own affair."""

    sensitivity_step_size: float = knob(0.0, low=0, high=_LARGEST_L2)
    """Length of a step of PGD, in pixel units, at least epsilon / steps, so that the edge of the ball is in reach;
    0 is 2.5 epsilon / steps. FGSM's one step is epsilon."""

    sensitivity_objective: str = knob("cross_entropy", choices=("cross_entropy", "kl", "transport"))
    """The quantity that `pgd` maximises: cross-entropy, KL from the clean prediction (TRADES), or the batch transport
    between clean and perturbed logits (feature scattering)."""

    invariance_norm: str = knob("linf", choices=_INVARIANCE_NORMS)
    """Norm of the training invariance attack; the L0 budget is the share of pixels that may change."""

    invariance_epsilon: float = knob(0.3, low=0, high=1)
    """Training budget of the invariance attack: pixel units for Linf, share of pixels for L0."""

    augmentation: str = knob("none", choices=("none", "crop_flip"))
    """Random changes of the training images before they are attacked: `crop_flip` pads by 4 black pixels, crops to the
    old size at random, and flips half of the images left to right, each with its invariance perturbation."""

    optimizer: str = knob("adamw", choices=("adamw", "sgd"))
    """`adamw`, or `sgd` with momentum."""

    learning_rate: float = knob(1e-3, above=0, high=10)
    """Step size of the optimiser, the largest of its schedule."""

    learning_rate_schedule: str = knob("constant", choices=("constant", "one_cycle", "piecewise"))
    """`constant`; `one_cycle`, up from 1/25 of the rate in the first 30% of training, then down to nearly 0; or
    `piecewise`, a tenth of the rate after half of training and a hundredth after three quarters."""

    momentum: float = knob(0.9, low=0, high=0.999)
    """Momentum of `sgd`."""

    weight_decay: float = knob(0.0, low=0, high=10)
    """Weight decay: decoupled in `adamw`, added to the gradient in `sgd`."""

    batch_size: int = knob(128, low=2, high=65536)
    """Images per step; the regularisers see pairs inside a batch."""

    epochs: int = knob(10, low=1, high=100_000)
    """Passes over the training split."""

    precision: str = knob("auto", choices=("auto", "float32", "tf32", "bfloat16"))
    """Rounding of the factors that are multiplied in training: none (`float32`), a GPU's to `tf32`, or those of the
    objective's passes, not the attack's, to `bfloat16`. `auto` is `tf32` on a GPU, `float32` on a CPU. Judging rounds
    nothing."""

    execution: str = knob("auto", choices=("auto", "eager", "compiled", "graph"))
    """The way to run a training step's operations: one after another (`eager`), the model's passes by `torch.compile`
    (`compiled`), or the whole step recorded once an epoch as a CUDA graph (`graph`). What can't be is run eagerly, with
    a warning. `auto` is `eager`."""

    seed: int = knob(0, low=0, high=2**31 - 1)
    """Seed of the initial weights, the order of images, their augmentation and the attacks' random starts."""

    def _check_together(self) -> None:
        check_budget("sensitivity_epsilon", self.sensitivity_epsilon, self.sensitivity_norm)
        if self.certified_ce_weight > 0 and self.architecture not in _CERTIFIABLE:
            raise InputError(
                f"architecture = {self.architecture!r}: can't be trained by certified_ce_weight (the bounds of its new "
                f"weights are some 1e20 wide, or not known), must be one of {', '.join(_CERTIFIABLE)}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from keys and values, where the older `cross_entropy_on` may stand for three weights.

        Raises:
            InputError: for an unknown key, with the nearest known one, or a value out of range.
        """
        return super().from_mapping({k: v for k, v in with_weights(values).items() if k != CROSS_ENTROPY_ON})

    @property
    def cross_entropy_views(self) -> tuple[str, ...]:
        """The views that the cross-entropies see; the clean one, at weight 0, if nothing teaches the classes.

        The clean one is also where the weight of the certified term lies until its ramp's end.
        """
        weights = {view: getattr(self, f"{view}_ce_weight") for view in _VIEWS}
        weights["clean"] += self.certified_ce_weight
        return tuple(view for view, weight in weights.items() if weight > 0) or ("clean",)

    @property
    def uses_regularizer(self) -> bool:
        """True if R has a weight on any perturbed images."""
        return self.regularizer != "none" and (self.sensitivity_weight > 0 or self.invariance_weight > 0)

    @property
    def uses_clean(self) -> bool:
        """True if the objective has any term on the clean images; plain PGD training has none."""
        weighted = self.uses_regularizer or self.trades_weight > 0 or self.norm_weight > 0
        return "clean" in self.cross_entropy_views or weighted

    @property
    def uses_sensitivity(self) -> bool:
        """True if the objective has any term on sensitivity-perturbed images."""
        regularised = self.regularizer != "none" and self.sensitivity_weight > 0
        return regularised or self.trades_weight > 0 or self.sensitivity_ce_weight > 0

    @property
    def uses_invariance(self) -> bool:
        """True if the objective has any term on invariance-perturbed images."""
        regularised = self.regularizer != "none" and self.invariance_weight > 0
        return regularised or self.invariance_ce_weight > 0

    @property
    def is_fgsm(self) -> bool:
        """True if the training attack is one step from the image itself."""
        one_step = self.sensitivity_attack == "pgd" and self.sensitivity_steps == 1
        return one_step and self.sensitivity_objective == "cross_entropy"


CROSS_ENTROPY_ON = "cross_entropy_on"
"""The older knob in place of three weights: the one view that the cross-entropy saw. Spaces, ledgers and checkpoints
written before the weights existed still name it."""

OLDER_FIELDS: dict[str, dataclasses.Field] = {CROSS_ENTROPY_ON: knob("clean", choices=_VIEWS)}
"""Fields that `TrialConfig` no longer has, and whose values it still takes from a mapping."""
OLDER_FIELDS[CROSS_ENTROPY_ON].name, OLDER_FIELDS[CROSS_ENTROPY_ON].type = CROSS_ENTROPY_ON, "str"


def with_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the weights that `cross_entropy_on` stands for, if it is there; given weights stay.

    Raises:
        InputError: for a `cross_entropy_on` that is none of its choices.
    """
    if CROSS_ENTROPY_ON not in values:
        return dict(values)
    seen = check_value(CROSS_ENTROPY_ON, values[CROSS_ENTROPY_ON], OLDER_FIELDS[CROSS_ENTROPY_ON])
    return {f"{view}_ce_weight": float(view == seen) for view in _VIEWS} | dict(values)


def view_of_cross_entropy(values: Mapping[str, Any]) -> str:
    """Return the view of the largest of the three weights: what `cross_entropy_on` was if only one is above 0."""
    return max(_VIEWS, key=lambda view: values[f"{view}_ce_weight"])


def check_packable(config: TrialConfig) -> None:
    """Raise InputError for a configuration that can't share a vectorised step."""
    if config.architecture not in _PACKABLE and ":" not in config.architecture:  # one's own is tried when it is there
        raise InputError(
            f"architecture = {config.architecture!r}: can't be packed (batch normalisation), "
            f"must be one of {', '.join(_PACKABLE)}; or train it without a pack"
        )
    if config.transport == "exact" and config.regularizer in ("sinkhorn", "ot_triplet"):
        raise InputError(
            f"transport = {config.transport!r}: can't be packed (it is solved problem by problem), "
            "must be 'entropic'; or train it without a pack"
        )


OF_EARLIER_VERSIONS: dict[str, Any] = {"eval_targeted_steps": 0}
"""Values of an evaluation where an earlier version wrote it, which had no name for them."""


@dataclass(frozen=True)
class EvaluationConfig(CheckedFields):
    """The evaluation of a trial: the data, its split and the attacks. It is fixed for a whole sweep, so that the points
    of the front can be compared."""

    dataset: str = knob("digits", choices=DATASETS, forms=_OWN_DATA)
    """`digits` is scikit-learn's bundled 8x8 set, the other names are torchvision's. Data of one's own is
    `folder:PATH` (a folder of PNG or JPEG files for each class), `npz:PATH` or `python:MODULE:FUNCTION`."""

    symmetries: str = knob("usual", choices=("usual", "none", "shifts", "turns", "shifts_and_turns"))
    """Movements of an image after which people see the same class: those that the invariance attack may use to lay
    its neighbour over an image, within limits (shifts of a tenth of a side, turns of 30 degrees). `usual` is what suits
    a named data set, and `shifts` for data of one's own."""

    split_seed: int = knob(0, low=0, high=2**31 - 1)
    """Seed of the split into training, validation and test images."""

    train_size: int = knob(0, low=0, high=1_000_000)
    """Training images used, the first so many of the shuffled split; 0 takes all."""

    validation_size: int = knob(0, low=0, high=1_000_000)
    """Validation images used for clean and sensitivity accuracy; 0 takes all."""

    eval_sensitivity_norm: str = knob("linf", choices=_SENSITIVITY_NORMS)
    """Norm of the evaluation's sensitivity attack."""

    eval_sensitivity_epsilon: float = knob(0.2, low=0, high=_LARGEST_L2)
    """Budget of the evaluation's sensitivity attack, in pixel units; at most 1 for Linf."""

    eval_sensitivity_steps: int = knob(20, low=1, high=10_000)
    """PGD steps of the evaluation's sensitivity attack."""

    eval_sensitivity_restarts: int = knob(1, low=1, high=1000)
    """Random restarts of that attack; an image counts as robust only if it survives all of them."""

    eval_final_steps: int = knob(70, low=0, high=10_000)
    """Steps of APGD-CE, and of targeted APGD towards the likeliest wrong classes, which judge the chosen epoch once
    more beside PGD: the final report and the front have their number. 0 leaves all final attacks out."""

    eval_targeted_steps: int = knob(30, low=0, high=10_000)
    """Steps of targeted PGD towards these classes, which judges the chosen epoch too; 0 leaves it out."""

    eval_invariance_norm: str = knob("linf", choices=_INVARIANCE_NORMS)
    """Norm of the evaluation's invariance attack."""

    eval_invariance_epsilon: float = knob(0.3, low=0, high=1)
    """Budget of the evaluation's invariance attack: pixel units for Linf, share of pixels for L0."""

    eval_invariance_size: int = knob(0, low=0, high=1_000_000)
    """Validation images that the invariance attack starts from; 0 takes all."""

    crowd: str = knob("strict")
    """The people whose answers the invariance axis goes by: `strict` overlooks pale ink, `lenient` doesn't; without
    people's answers neither is calibrated and both are the same. One's own stands here by value (`trainer.crowds`)."""

    def written(self) -> dict[str, Any]:
        """Return the values as plans and checkpoints name them: usual symmetries go unsaid, as before they could be
        declared, so that what was written then keeps its digest."""
        return {name: value for name, value in vars(self).items() if (name, value) != ("symmetries", "usual")}

    def _check_together(self) -> None:
        object.__setattr__(self, "dataset", _absolute(self.dataset))
        check_budget("eval_sensitivity_epsilon", self.eval_sensitivity_epsilon, self.eval_sensitivity_norm)


def _absolute(dataset: str) -> str:
    """Return the name of a data set with its path made absolute, so that it means the same in every process."""
    kind, _, path = dataset.partition(":")
    if kind not in ("folder", "npz"):
        return dataset
    if not path or "://" in path:
        raise InputError(f"dataset = {dataset!r}: must be {kind}:PATH with a path on this machine")
    return f"{kind}:{os.path.abspath(os.path.expanduser(path))}"


_PART = {"validation_size": 2000, "eval_invariance_size": 500}
"""Sizes of the evaluation that a laptop can attack after every epoch, for data with a large validation split."""

_PHOTOGRAPHS = {
    **_PART,
    "architecture": "resnet18",
    "eval_sensitivity_epsilon": 8 / 255,
    "sensitivity_epsilon": 8 / 255,
    "certified_epsilon": 8 / 255,
}
_DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {},
    # At an invariance budget of 0.3 two groups of people disagree whether anything has changed.
    "mnist": {
        **_PART,
        "eval_sensitivity_epsilon": 0.3,
        "sensitivity_epsilon": 0.3,
        "certified_epsilon": 0.3,
        "eval_invariance_epsilon": 0.4,
        "invariance_epsilon": 0.4,
    },
    "fashion_mnist": {**_PART, "eval_sensitivity_epsilon": 0.1, "sensitivity_epsilon": 0.1},
    "kmnist": _PART,
    "emnist": _PART,
    "cifar10": _PHOTOGRAPHS,
    "svhn": _PHOTOGRAPHS,
}
"""Defaults of a single trial that differ from those above, by data set: the budgets of its literature."""


def usual_settings(dataset: str) -> dict[str, Any]:
    """Return the defaults of a single trial on a data set that differ from those of all; none for one's own."""
    return _DATASET_DEFAULTS.get(dataset, {})


def usual_evaluation(dataset: str) -> EvaluationConfig:
    """Return the evaluation of a single trial on a data set, where nothing else is given."""
    usual = {**usual_settings(dataset), "dataset": dataset}
    return EvaluationConfig(**{name: value for name, value in usual.items() if name in EvaluationConfig.fields()})


for _record in (TrialConfig, EvaluationConfig):
    assert all(t in (bool, int, float, str) for n, t in get_type_hints(_record).items() if n in _record.fields())
