"""Presets: named configurations, each listing only the settings that differ from `TrialConfig`'s defaults.

Budgets are in pixel units of [0,1] images. A preset does not set what depends on the data (epochs, and the budgets of
methods that define none), so that it can be combined with any data set and any `--set`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.errors import InputError
from trainer.words import did_you_mean

_PAPER = {"embedding_size": 4, "learning_rate": 1e-4, "batch_size": 256}
"""Settings of Ovalle, Czyzycki and Hsieh 2022 (arXiv 2211.02468): a 4-dimensional embedding, Adam at 1e-4, batches of
256. Their 200 epochs are left to the data."""

_PERTURBED = {"clean_ce_weight": 0.0, "sensitivity_ce_weight": 1.0}
"""Cross-entropy on the sensitivity-perturbed images in place of the clean ones."""

_PGD = {"sensitivity_steps": 40, "sensitivity_step_size": 0.01}
"""The training attack of Madry et al. 2018 and of those who compare with them on MNIST, at a budget of 0.3. At another
budget or number of steps a step is never shorter than epsilon / steps."""

_CERTIFIED = {
    **{"clean_ce_weight": 0.5, "certified_ce_weight": 0.5},
    **{"certified_ramp": 0.2, "learning_rate_schedule": "piecewise"},
}
"""Certified training; at the ramp's end clean and worst-case cross-entropy weigh the same. The ramp ends after 12 of 60
thousand steps, as on MNIST in Gowal et al. 2018, who begin it after two; their rate falls after 0.42 and 0.7 of the
steps, here after 0.5 and 0.75."""

_FGSM = {"sensitivity_steps": 1, "sensitivity_epsilon": 0.01}
"""Their FGSM. Their budget was 0.01 of the normalised image, which is 0.0031 of the pixel range, clamped to [0,1]."""

_NORM = {"norm_weight": 0.001}
"""Their norm penalty. They sum the norms of anchor, positive and negative; here it is the mean over the step's
embeddings."""

_TRIPLET = {"regularizer": "triplet", **_NORM}
"""Their batch-hard triplet loss on the cosine distance, margin 0.05, at a weight of 0.5, beside the norm penalty. Their
anchors are the clean images, here the perturbed ones (see `trainer.objective.terms`)."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Cross-entropy on clean images and nothing else.
    "baseline": {},
    # Madry et al. 2018: cross-entropy on PGD images; the budget belongs to the data.
    "pgd-at": {**_PERTURBED, **_PGD},
    # Zhang et al. 2019, beta 6: cross-entropy on clean images, KL to the predictions on images that maximise it.
    "trades": {**_PGD, "trades_weight": 6.0, "sensitivity_objective": "kl"},
    # Mao et al. 2019, the MNIST setting, margin 0.05. Their penalty is the mean squared norm, here the mean norm.
    "tla": {
        **_PERTURBED,
        **_PGD,
        "sensitivity_epsilon": 0.3,
        "regularizer": "triplet",
        "sensitivity_weight": 0.5,
        "norm_weight": 1e-4,
    },
    # Bouniot et al. 2021: debiased divergence of the logits, squared Euclidean, entropy 1, blind to labels.
    "sat": {
        **_PERTURBED,
        **_PGD,
        "regularizer": "sinkhorn",
        "regularizer_on": "logits",
        "ground_metric": "euclidean",
        "sensitivity_weight": 1.0,
        "entropy": 1.0,
        "label_cost": 0.0,
    },
    # Zhang and Wang 2019: the attack maximises the batch transport of logits, in one step of epsilon from a random
    # start (any shorter one is lengthened to that). They give 0.5 of a label to the other classes, which of ten classes
    # is 5/9 spread over all.
    "feature-scattering": {
        **_PERTURBED,
        "sensitivity_objective": "transport",
        "sensitivity_steps": 1,
        "sensitivity_step_size": 0.01,
        "label_smoothing": 5 / 9,
    },
    # Gowal et al. 2018: half of the loss on clean images, half on the worst logits that intervals allow, along a ramp.
    # The budget belongs to the data; theirs was somewhat above the one judged by (MNIST: 0.4 for 0.3).
    "ibp": _CERTIFIED,
    # Zhang et al. 2020: the same with CROWN's last bound over intervals, passing into intervals along the ramp.
    "crown-ibp": {**_CERTIFIED, "certified_method": "crown-ibp"},
    # The eight published configurations. "nll" is the cross-entropy on clean images unless a perturbation follows; "ml"
    # is the triplet term over the perturbation named. Invariance images carry the teacher's label; theirs kept the
    # source's.
    "paper/clean-nll": {**_PAPER},
    "paper/clean-nll-norm": {**_PAPER, **_NORM},
    "paper/nll-sensitivity": {**_PAPER, **_FGSM, **_PERTURBED},
    "paper/nll-sensitivity-norm": {**_PAPER, **_FGSM, **_NORM, **_PERTURBED},
    # No term of theirs used the invariance images that the name mentions, so it equals the one above.
    "paper/nll-sensitivity-norm-invar": {**_PAPER, **_FGSM, **_NORM, **_PERTURBED},
    "paper/nll-invariance": {**_PAPER, "clean_ce_weight": 0.0, "invariance_ce_weight": 1.0},
    "paper/nll-ml-sensitivity": {**_PAPER, **_FGSM, **_TRIPLET, "sensitivity_weight": 0.5},
    "paper/nll-ml-invariance": {**_PAPER, **_TRIPLET, "invariance_weight": 0.5},
    "paper/nll-ml-sens-invar": {**_PAPER, **_FGSM, **_TRIPLET, "sensitivity_weight": 0.5, "invariance_weight": 0.5},
}


def preset(name: str) -> dict[str, Any]:
    """Return a copy of a preset's settings.

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: {did_you_mean(name, PRESETS)}")
    return dict(PRESETS[name])
