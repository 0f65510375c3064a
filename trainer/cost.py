"""What a trial costs, as `timing` measures it. Read by drivers, which have no torch."""

from __future__ import annotations

from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Of one configuration: bytes of what a trial keeps, and seconds. On one core of a CPU they are seconds of that
    core, so that configurations can be compared on a busy machine; elsewhere the wall's."""

    beginning: float
    """Before the first epoch: the model, and its training images perturbed."""
    steps: int
    """Of an epoch."""
    step: float
    diagnosis: float
    """What the last step of an epoch takes more."""
    judging_low: float
    """After an epoch, of a model that no image withstands."""
    judging_high: float
    """And of one that all images withstand."""
    saving: float
    """Of a checkpoint."""
    checkpoint_bytes: int
    """Of one in the second half of training, which holds the best weights beside the newest."""
    model_bytes: int
    timed: float
    """All that was measured in those seconds, and..."""
    wall: float
    """...what it took by the wall's clock: more, where others take the processors."""
    report: dict[str, Any]
    """What such a trial says after an epoch."""

    def slowed(self, factor: float) -> Cost:
        """The same where all takes so many times as long."""
        fields = ("beginning", "step", "diagnosis", "judging_low", "judging_high")
        return self._replace(**{name: factor * getattr(self, name) for name in fields})

    def epoch(self, standing: float) -> float:
        """Seconds of an epoch, where the images that a model withstands take this share of the judging's range."""
        judging = self.judging_low + standing * (self.judging_high - self.judging_low)
        return self.steps * self.step + self.diagnosis + judging + self.saving
