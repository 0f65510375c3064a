"""The cost of a trial as `trainer.training` profiles it. Drivers read it, so it needs no torch."""

from __future__ import annotations

from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Seconds of the parts of a trial of one configuration, and bytes of what it keeps.

    On one core of a CPU they are seconds of that core, so that configurations can be compared on a busy machine;
    elsewhere they are wall-clock seconds.
    """

    beginning: float
    """Seconds before the first epoch: making the model and perturbing the training images."""
    steps: int
    """Number of steps of an epoch."""
    step: float
    """Seconds of one step."""
    diagnosis: float
    """Additional seconds of an epoch's last step."""
    judging_low: float
    """Seconds of judging a model after an epoch if none of its images withstands the attack."""
    judging_high: float
    """Seconds of judging it if all of them do."""
    saving: float
    """Seconds of saving a checkpoint."""
    checkpoint_bytes: int
    """Size of a checkpoint in the second half of training, which holds the best weights beside the newest."""
    model_bytes: int
    timed: float
    """Sum of the measured seconds."""
    wall: float
    """Wall-clock seconds of the same measurements: more if other processes use the processors."""
    report: dict[str, Any]
    """A report of such a trial after an epoch."""
    finishing: float = 0.0
    """Seconds of judging the chosen epoch once more, if all images withstand the attacks."""

    def slowed(self, factor: float) -> Cost:
        """Return the cost if everything takes `factor` times as long."""
        fields = ("beginning", "step", "diagnosis", "judging_low", "judging_high", "finishing")
        return self._replace(**{name: factor * getattr(self, name) for name in fields})

    def epoch(self, standing: float) -> float:
        """Return the seconds of an epoch.

        Args:
            standing: Position in the range from `judging_low` to `judging_high`, in [0, 1].
        """
        judging = self.judging_low + standing * (self.judging_high - self.judging_low)
        return self.steps * self.step + self.diagnosis + judging + self.saving
