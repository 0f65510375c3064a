"""Models judged, from Python and for the command."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.api.options import knob_words
from trainer.human_agreement import find_examples
from trainer.interrupts import remembered_interrupts
from trainer.progress import ProgressLine

if TYPE_CHECKING:
    from sweep.judge import Judgement


def judge(
    models: str | Path | Sequence[str | Path],
    *,
    dataset: str = "digits",
    architecture: str | Sequence[str] | None = None,
    set: Mapping[str, Any] | Sequence[str] = (),
    crowd: str | None = None,
    test_size: int | None = None,
    steps: int | None = None,
    queries: int | None = None,
    fab: int | None = None,
    judges: int | None = None,
    invariance_examples: str | Path | None = None,
    storage: str | Path | None = None,
    data_dir: str | Path | None = None,
    mlflow_uri: str | None = None,
    device: str = "auto",
    cpus_per_trial: int | None = None,
    progress: bool = False,
) -> Judgement:
    """Judge any models on both axes, as an audit judges its finalists; nothing is written to MLflow.

    Args:
        models: files: a trial's `model.pt`, TorchScript, a state dict or safetensors.
        dataset: data on whose test split they are judged.
        architecture: `python:MODULE:FACTORY` of the network that weights are of: one for all, or one for each model.
        set: fields of the evaluation by name, in place of what is usual for the data.
        crowd: the people whose answers count.
        test_size, steps, queries, fab, judges: the effort, as of `otsweep audit`.
        invariance_examples: folder with images that people labelled.
        storage: folder of all sweeps; None for `OTSWEEP_STORAGE`, else `~/otsweep`.
        data_dir: folder with data sets; None for `OTSWEEP_DATA_DIR`.
        mlflow_uri: store that the command writes to.
        device: `cpu`, `cuda`, `cuda:1`, ..., or `auto` for a GPU if there is one.
        cpus_per_trial: threads, on which the last digits depend; None for 1.
        progress: True to show how far it is.

    Raises:
        InputError: naming what is wrong: a pickle, a model of other images or classes, an option.
        TrialFailed: for a model whose logits are not finite.
        KeyboardInterrupt: after Ctrl-C; the same call goes on after the last model that is done.
    """
    from sweep.judge import find_models, judge_models, judging_options, judging_plan

    effort = {"test_size": test_size, "steps": steps, "queries": queries, "fab": fab, "judges": judges}
    options = judging_options(effort)
    files = find_models(
        [models] if isinstance(models, (str, Path)) else models,
        [architecture] if isinstance(architecture, str) else architecture or (),
    )
    plan = judging_plan(
        dataset,
        settings=knob_words(set),
        crowd=crowd,
        storage=None if storage is None else str(storage),
        mlflow_uri=mlflow_uri,
        data_dir=None if data_dir is None else str(data_dir),
        cpus=cpus_per_trial,
    )
    examples = find_examples(invariance_examples, dataset=plan.space.evaluation.dataset, data_dir=plan.data_dir)
    with remembered_interrupts(), ProgressLine(sys.stderr, shown=progress) as line:
        return judge_models(files, plan, options, examples=examples, device=device, line=line)
