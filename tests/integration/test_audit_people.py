"""An audit and a trial on MNIST, compared with people on the published examples."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweep.plan.plan_file import read_plan
from tests.integration.test_audit import OPTIONS, TINY
from tests.integration.test_sweep import run_words
from tests.support.commands import otsweep
from trainer.files.sealed import SEAL
from trainer.human_agreement import JUDGE, MODEL, ORIGINAL, HumanAgreement

MNIST = TINY.replace("dataset: digits, train_size: 300", "dataset: mnist, train_size: 1000").replace(
    "eval_sensitivity_steps: 3", "eval_sensitivity_steps: 3, eval_invariance_epsilon: 1.0"
)


@pytest.fixture(scope="module")
def mnist_storage(new_storage: Callable[[str], Path], data_dir: Path) -> Path:
    """Make a storage folder with a small sweep of MNIST, audited while no examples were at hand."""
    folder = new_storage("people")
    (folder / "data").mkdir()
    (folder / "data" / "MNIST").symlink_to(data_dir / "MNIST")
    (folder / "tiny.yaml").write_text(MNIST)
    words = (*run_words(folder, "swept"), "--trials", "2", "--data-dir", str(folder / "data"))
    for done in (otsweep(folder, *words), audit_of_mnist(folder)):
        assert done.returncode == 0, done.stdout + done.stderr
    assert "--invariance-examples" in done.stdout
    return folder


def audit_of_mnist(storage: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return otsweep(storage, "audit", "swept", "--seeds", "1", "--judges", "1", *OPTIONS, *words)


def results_in(storage: Path) -> dict[str, dict[str, Any]]:
    """Return the results by file, without the checksum."""
    files = (storage / "swept" / "audit").glob("[0-9]*.json")
    return {file.name: {k: v for k, v in json.loads(file.read_text()).items() if k != SEAL} for file in files}


@pytest.mark.slow
def test_an_audit_is_compared_with_people_once_and_says_so_ever_after(mnist_storage: Path, data_dir: Path) -> None:
    bare = results_in(mnist_storage)
    assert bare
    assert all(result["people"] is None for result in bare.values())
    words = ("--invariance-examples", str(data_dir / "invariance_examples"))
    first = audit_of_mnist(mnist_storage, *words)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "auditing" in first.stdout
    assert "training" not in first.stdout.replace("training 0/0", "")
    # Nothing else is judged again.
    asked = results_in(mnist_storage)
    assert {name: {**result, "people": None} for name, result in asked.items()} == bare
    for again in (audit_of_mnist(mnist_storage, *words), audit_of_mnist(mnist_storage)):
        assert again.stdout == first.stdout[first.stdout.index("\nmnist: ") :]
    for result in asked.values():
        compared = HumanAgreement.from_plain(result["people"])
        sizes = {each.name: (each.images, each.changed, each.unchanged) for each in compared.sets}
        assert sizes == {"linf/automated_eps03": (100, 21, 79), "l0/automated": (100, 55, 45)}
        for each in compared.sets:
            original, oracle, model = (each.by(name) for name in (ORIGINAL, JUDGE, MODEL))
            assert (original.changed.hits, original.unchanged.value, original.stuck.value) == (0, 1, 1)
            assert oracle.covered.hits == oracle.changed.size + oracle.unchanged.size
            assert model.covered == (100, 100)
            shown = [line.split() for line in first.stdout.splitlines() if line.startswith("the judge ")]
            assert [f"{oracle.changed.value:.1%}", "of", str(oracle.changed.size)] in [line[2:5] for line in shown]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a file", "empty", "pickled", "not numbers"])
def test_damaged_examples_are_refused_before_anything_is_trained(
    mnist_storage: Path, data_dir: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "examples"
    if damage == "a file":
        folder.touch()
    elif damage == "empty":
        folder.mkdir()
    else:
        shutil.copytree(data_dir / "invariance_examples", folder)
        images = np.full((100, 28, 28), np.nan if damage == "not numbers" else None)
        np.save(folder / "linf" / "automated_eps03.npy", images, allow_pickle=True)
    before = results_in(mnist_storage)
    done = audit_of_mnist(mnist_storage, "--invariance-examples", str(folder))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert str(folder) in done.stderr
    assert results_in(mnist_storage) == before


@pytest.mark.slow
def test_a_trial_is_compared_with_people_too(mnist_storage: Path, data_dir: Path, tmp_path: Path) -> None:
    evaluation = read_plan("swept", storage=str(mnist_storage)).space.evaluation.to_dict()
    words = [word for name, value in evaluation.items() for word in ("--set", f"{name}={value}")]
    words += ["--set", "architecture=mlp", "--epochs", "1", "--data-dir", str(data_dir), "--out", str(tmp_path)]
    done = otsweep(mnist_storage, "trial", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = (str(tmp_path), str(data_dir))  # as long as whoever owns them likes
    assert max(len(line) for line in done.stdout.splitlines() if not any(path in line for path in paths)) <= 80
    compared = HumanAgreement.from_plain(json.loads((tmp_path / "report.json").read_text())["people"])
    for each in compared.sets:
        assert each.title in done.stdout
        for agreement in each.agreements:
            name = {JUDGE: "the judge"}.get(agreement.answerer, agreement.answerer)
            assert re.search(rf"{name} +{agreement.changed.value:.1%} of {agreement.changed.size} ", done.stdout)
