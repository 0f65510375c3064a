"""Models judged one after another in this process; what is done is kept, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.audit import Measured, compare_with_people, judged_by, measure_model, why_uncertified
from sweep.judge.files import ModelFile
from sweep.judge.judgement import Judgement
from sweep.judge.result import JudgedModel
from sweep.plan import AuditOptions, SweepPlan, installed_version
from sweep.state import judged_images
from trainer.files import seal_json, unseal_json, write_whole
from trainer.human_agreement import ExamplesFolder
from trainer.plugins import is_plugin, plugin_digest
from trainer.progress import ProgressLine

if TYPE_CHECKING:
    from torch import nn

    from trainer.invariance import LabelledSet, Prepared

_KEPT = "judged"
"""Folder in the cache with what is known of each model."""


def judge_models(
    files: Sequence[ModelFile],
    plan: SweepPlan,
    options: AuditOptions,
    *,
    examples: ExamplesFolder | None = None,
    device: str = "auto",
    line: ProgressLine,
) -> Judgement:
    """Judge models on the test split of the plan's data, each as an audit judges a finalist.

    Args:
        files: the models.
        plan: what they are judged by, of `judging_plan`.
        options: the effort.
        examples: images that people labelled, with which models and judge are compared.
        device: `cpu`, `cuda`, `cuda:1`, ..., or `auto` for a GPU if there is one.
        line: shows how far it is.

    Raises:
        InputError: for data, a device or a model that can't be had, before anything is measured.
        TrialFailed: for a model whose logits are not finite.
        KeyboardInterrupt: after Ctrl-C; the same call goes on after the last model that is done.
    """
    line.update("loading torch", now=True)
    import torch

    from trainer.__main__ import pick_device
    from trainer.data import load_data
    from trainer.invariance import ceiling, prepare, read_examples
    from trainer.training import read_given_model

    where = pick_device(device)
    torch.set_num_threads(max(1, int(plan.cpus_per_trial)))
    places: dict[str, Any] = {"data_dir": Path(plan.data_dir) if plan.data_dir else None, "cache_dir": plan.cache_dir}
    evaluation = plan.space.evaluation
    line.begin("reading data and models")
    data = load_data(evaluation, **places)
    sets = read_examples(Path(examples.path), data.test, classes=data.classes) if examples else []
    sizes: dict[str, Any] = {"shape": data.shape, "classes": data.classes}
    given = [
        read_given_model(file.path, file.path.read_bytes(), architecture=file.architecture, **sizes) for file in files
    ]
    prepared = prepare(
        evaluation,
        invariance_norms=(),
        device=where,
        progress=lambda stage, done, total: line.show(f"preparing: {stage}", done, total),
        **places,
    )
    judged = [judged_images(prepared, "test", judge=number) for number in range(options.judges)]
    models = []
    for number, (file, (model, kind)) in enumerate(zip(files, given, strict=True), 1):
        heading = f"{file.name} ({number} of {len(files)})"
        settings = {"threads": plan.cpus_per_trial, "device": where, "torch": installed_version("torch")}
        kept = plan.cache_dir / _KEPT / f"{_key(file, prepared, options, examples, settings)}.json"
        measured = _read(kept)
        if measured is None:
            measured = _measure(model.to(where), prepared, options, examples, sets, line=line, heading=heading)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, seal_json({"measured": measured[0]._asdict(), "people": measured[1]}))
        models.append(JudgedModel(file, kind, measured[0], why_uncertified(model, evaluation), measured[1]))
        model.cpu()
    volume = {each.file.name: _volume(each, plan) for each in models}
    return Judgement(
        plan,
        options,
        tuple(sorted(models, key=lambda each: -volume[each.file.name])),
        judged,
        split=len(data.test.labels),
        ceiling=ceiling(prepared.judging_set("test"), evaluation, images=len(data.test.labels)),
        data_fingerprint=data.fingerprint,
    )


def _volume(model: JudgedModel, plan: SweepPlan) -> float:
    """Return the area that a model dominates alone, against (0, 0)."""
    first, second = (model.measured.numbers[name] for name in plan.objectives.names[:2])
    return first * second


def _measure(
    model: nn.Module,
    prepared: Prepared,
    options: AuditOptions,
    examples: ExamplesFolder | None,
    sets: Sequence[LabelledSet],
    *,
    line: ProgressLine,
    heading: str,
) -> tuple[Measured, dict[str, Any] | None]:
    """Return the numbers of a model, and its agreement with people where there are examples."""
    found = measure_model(model, prepared, options, begin=lambda stage: line.begin(f"judging {heading}: {stage}"))
    if not examples:
        return found, None
    line.begin(f"judging {heading}: beside people")
    return found, compare_with_people(model, prepared, examples, sets)


def _key(
    file: ModelFile,
    prepared: Prepared,
    options: AuditOptions,
    examples: ExamplesFolder | None,
    settings: dict[str, Any],
) -> str:
    """Return a digest of all that the numbers of a model depend on."""
    content = {
        "model": file.digest,
        "architecture": plugin_digest("architecture", file.architecture) if is_plugin(file.architecture) else "",
        "evaluation": prepared.evaluation.written(),
        "data": prepared.data.fingerprint,
        "effort": judged_by(options),
        "examples": examples.digest if examples else "",
        **settings,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> tuple[Measured, dict[str, Any] | None] | None:
    """Return what is kept of a model; None where nothing is, or it is damaged."""
    try:
        content = unseal_json(path.read_bytes())
        return Measured(**content["measured"]), content["people"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
