"""Words that users type and read: the nearest right word for a wrong one, short names of knobs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHORT_NAMES = {
    "sensitivity_weight": "ws",
    "invariance_weight": "wv",
    "norm_weight": "wn",
    "sensitivity_epsilon": "eps",
    "invariance_epsilon": "epsv",
    "regularizer": "R",
    "margin": "m",
    "trades_weight": "beta",
    "learning_rate": "lr",
    "clean_ce_weight": "ac",
    "sensitivity_ce_weight": "as",
    "invariance_ce_weight": "av",
    "certified_ce_weight": "ab",
    "certified_epsilon": "epsb",
    "negative_share": "rho",
    "cross_entropy_on": "ce",
    "entropy": "ent",
    "sensitivity_steps": "steps",
}
"""Short names of knobs for a trial's label in tables and pictures; a knob without one keeps its full name."""

_FEW_WORDS = 8
"""Maximum number of known words that are all listed beside the nearest one."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return a clause that names the nearest known word, and all of them if they are few or none is near."""
    known = list(known)
    meant = [name for name, short in SHORT_NAMES.items() if short == word and name in known]
    nearest = meant or difflib.get_close_matches(str(word).lower(), known, n=1, cutoff=0.5)
    if nearest and len(known) > _FEW_WORDS:
        return f"did you mean {nearest[0]!r}?"
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}known: {', '.join(known)}"
