"""The answers of people: a log that keeps each at once, and the votes in the layout of published studies."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path
from typing import IO

import numpy as np

from sweep.people.survey import Survey, write_array
from trainer.errors import InputError

_CANNOT_TELL = -1
"""Answer of a person who can't tell."""

_PERSON = re.compile(r"[\w][\w .'-]{0,39}")


def _ends_a_line(log: IO[bytes]) -> bool:
    """Return whether a log is empty or its last line is whole, not cut while it was written."""
    if log.seek(0, os.SEEK_END) == 0:
        return True
    log.seek(-1, os.SEEK_END)
    return log.read(1) == b"\n"


def check_person(name: str) -> str:
    """Return a person's name after a check.

    Raises:
        InputError: for an empty name, a long one, or one with other than letters, digits, spaces, '.', '-' and quotes.
    """
    name = " ".join(name.split())
    if not _PERSON.fullmatch(name):
        raise InputError(f"name {name[:60]!r}: must be 1 to 40 letters, digits, spaces, '.', '-' or quotes")
    return name


class AnswerLog:
    """The answers to a survey. An image that is answered again has the newest answer.

    Args:
        survey: the images; the log lies beside them as `answers.jsonl`.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.path = survey.folder / "answers.jsonl"
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._answers: dict[str, dict[int, int]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                entry = json.loads(line)
                self._answers.setdefault(entry["person"], {})[int(entry["image"])] = int(entry["answer"])
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a log that was cut while it was written

    @property
    def votes_folder(self) -> Path:
        """The folder of `write_votes`."""
        return self.survey.folder / "votes"

    @property
    def people(self) -> list[str]:
        """The names of all who answered, in the order in which they began."""
        with self._lock:
            return list(self._answers)

    def of(self, person: str) -> dict[int, int]:
        """Return a person's answers by image; `_CANNOT_TELL` stands for no class."""
        with self._lock:
            return dict(self._answers.get(person, {}))

    def add(self, person: str, image: int, answer: int) -> None:
        """Keep an answer: it is on the disk when this returns; with a person's last one all votes are written anew.

        Raises:
            InputError: for an image that the survey lacks, or an answer that is no class.
        """
        person = check_person(person)
        if not 0 <= image < len(self.survey.images):
            raise InputError(f"image {image}: must be from 0 to {len(self.survey.images) - 1}")
        if not _CANNOT_TELL <= answer < self.survey.classes:
            raise InputError(f"answer {answer}: must be from 0 to {self.survey.classes - 1}, or {_CANNOT_TELL}")
        entry = {"person": person, "image": image, "answer": answer, "time": time.time()}
        with self._lock:
            with self.path.open("a+b") as log:
                log.write(b"" if _ends_a_line(log) else b"\n")
                log.write(json.dumps(entry).encode() + b"\n")
                log.flush()
                os.fsync(log.fileno())
            self._answers.setdefault(person, {})[image] = answer
            done = len(self._answers[person]) == len(self.survey.images)
        if done:
            self.write_votes()

    def votes(self) -> np.ndarray:
        """Return (N, P) int8: the class that each person named for each image; -1 where there is no answer."""
        votes = np.full((len(self.survey.images), len(self.people)), _CANNOT_TELL, np.int8)
        for column, person in enumerate(self.people):
            for image, answer in self.of(person).items():
                votes[image, column] = answer
        return votes

    def write_votes(self) -> None:
        """Write the perturbed images and their votes in the layout of published studies, to `votes/`."""
        folder, perturbed = self.votes_folder, self.survey.perturbed
        with self._writing:
            folder.mkdir(exist_ok=True)
            write_array(folder / "images.npy", self.survey.images[perturbed].astype(np.float32))
            write_array(folder / "sources.npy", self.survey.sources[perturbed])
            write_array(folder / "labels.npy", self.survey.labels[perturbed])
            write_array(folder / "votes.npy", self.votes()[perturbed])
