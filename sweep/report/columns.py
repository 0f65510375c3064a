"""Descriptions and units of the columns of a ledger's table, for its file's metadata."""

from __future__ import annotations

import re

from trainer.config import TrialConfig
from trainer.fields import field_docs
from trainer.report import OF_EPOCH, STRENGTH, EpochReport

_TRIAL = {
    "trial": "Number of the trial, from 0 in the order of proposal.",
    "seed": "Seed that the trial was given.",
    "state": "running (begun and not ended), finished, stopped (early) or failed.",
    "reason": "Reason of the trial's end, if it is not finished.",
    "host": "Host of the latest attempt.",
    "attempts": "Number of attempts begun.",
    "held": "Time in its slot, all attempts together.",
    "started": "Start of the first attempt.",
    "ended": "End of the trial; empty while it runs.",
    "front": "True for the trials on the sweep's front, all seeds of a configuration alike.",
    "time": "Time of the report.",
}
_REPORT = {
    "learning_rate": "Step size of the optimiser at the end of the epoch; the knob is config.learning_rate.",
    "train_seconds": "Wall-clock time of the epoch's training.",
    "evaluation_seconds": "Wall-clock time of the epoch's judging.",
    "invariance_changed_size": "Number of changed images, by the judge of earlier versions.",
    "marginal_error": "Largest error of the marginals among the epoch's transport problems.",
    "embedding_rank": "Effective rank of the embeddings in the epoch's last step.",
    "embedding_spread": "Spread of the embeddings in the epoch's last step.",
    "collapsed": "1 if the embeddings have collapsed, else 0.",
    STRENGTH: "Gradient steps per image, over all restarts, of the attack behind the sensitivity accuracy.",
    OF_EPOCH: "Sensitivity accuracy by which the epoch was chosen, under the cheap attack; in the final report.",
}
_PREFIXES = {
    "config.": "Setting {} of the trial. ",
    "decision.": "Field {} of the decision at a rung that compared this report.",
    "loss/": "Loss term {}, not weighted, mean over the epoch.",
    "gradient_share/": "Norm of the gradient of the weighted term {} over that of the cross-entropy, in the last step.",
}
_UNITS = {
    r"held|.*_seconds": "s",
    r"started|ended|time": "s since 1970-01-01 UTC",
    r"config\..*(epsilon|step_size)": "pixel value, from 0 (black) to 1 (white); with the norm l0 a share of pixels",
    r"config\..*(_share|_ramp|label_smoothing)": "share, from 0 to 1",
    r"(.*/)?[a-z_]*(_accuracy|_stuck|_unchanged|_original_label)": "share, from 0 to 1",
    r"gradient_share/.*": "ratio",
    r"(.*/)?invariance_(changed_mass|effective_size|changed_size)": "images",
}


def describe_column(name: str) -> dict[str, str]:
    """Return the `description` of a column and, where it has one, its `unit`."""
    unit = next((unit for pattern, unit in _UNITS.items() if re.fullmatch(pattern, name)), "")
    return {"description": _describe(name)} | ({"unit": unit} if unit else {})


def _describe(name: str) -> str:
    known = {**field_docs(EpochReport), **_REPORT, **_TRIAL}
    if name in known:
        return known[name]
    for prefix, text in _PREFIXES.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            own = field_docs(TrialConfig).get(rest, "") if prefix == "config." else ""
            return (text.format(rest) + own).strip()
    crowd, slash, measure = name.rpartition("/")
    if slash and measure in known:
        return f"{measure} by the answers of the crowd {crowd}. {known[measure]}"
    return "Further number of the trial's reports."
