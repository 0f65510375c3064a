"""The trained judges and the teacher of some data, from the cache or trained now."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from trainer.data import Data
from trainer.files import Cache
from trainer.invariance.judge import Judge, Teacher, build_judge, build_teacher
from trainer.invariance.judge_training import train_ensemble
from trainer.invariance.recipes import recipe_for


class Ensembles:
    """The judges and the teacher, each trained once on its half of the training images.

    The names of stages and the keys of parameters name the cached files, so they stay as they are.
    """

    def __init__(
        self,
        data: Data,
        seed: int,
        common: Mapping[str, Any],
        cache: Cache,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Take the data and its split's seed; `common` is what everything that is cached depends on."""
        self._data, self._seed, self._common, self._cache, self._progress = data, seed, common, cache, progress

    def judge(self, number: int = 0) -> Judge:
        """Return the judge of trials for 0, else another, of another seed and on a bootstrap sample of its half."""
        judge = build_judge(self._data.name, self._data.shape, self._data.classes)
        self._load("judge", judge, number)
        return judge

    def teacher(self) -> Teacher:
        """Return the teacher."""
        teacher = build_teacher(self._data.name, self._data.shape, self._data.classes)
        self._load("teacher", teacher, 0)
        return teacher

    def _load(self, role: str, ensemble: Judge | Teacher, repeat: int) -> None:
        """Give an untrained ensemble its trained weights; `repeat` is that of `train_ensemble`."""
        stage = f"{role} {repeat}" if repeat else role

        def make() -> dict[str, Tensor]:
            train_ensemble(
                list(ensemble.members),
                self._data.name,
                role,
                *self._data.train,
                seed=self._seed,
                repeat=repeat,
                progress=lambda done, total: self._progress(stage, done, total),
            )
            return ensemble.state_dict()

        ensemble.load_state_dict(self._cache.get(stage, {**self._common, **key_of(self._data.name, role)}, make))


def key_of(dataset: str, role: str) -> dict[str, Any]:
    """Return what an ensemble depends on beside the data: its role and recipe."""
    return {"role": role, "recipe": dataclasses.asdict(recipe_for(dataset, role))}
