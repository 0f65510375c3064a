"""`python -m trainer` and `otsweep trial`: what they print, what they write, what they refuse, how they are stopped."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep.cli import commands
from trainer import __main__
from trainer.attacks.evidence import wilson_interval
from trainer.config import DATASETS, EvaluationConfig, TrialConfig
from trainer.files.checkpoints import from_bytes
from trainer.invariance.preparation import Prepared
from trainer.objective.diagnosis import LEAST_RANK, LEAST_SPREAD
from trainer.presets import PRESETS
from trainer.report import EpochReport
from trainer.training.loop import run_trial
from trainer.training.model_file import load_model

SHORT: dict[str, Any] = {"architecture": "mlp", "batch_size": 50, "epochs": 2}

Command = Callable[[list[str]], int]
BOTH = pytest.mark.parametrize(
    "main", [__main__.main, lambda words: commands.main(["trial", *words])], ids=["python -m trainer", "otsweep trial"]
)


def sets(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def words_of(prepared: Prepared, out: Path, **settings: Any) -> list[str]:
    """The command of a trial on the data that the session prepared."""
    return ["--out", str(out), *sets(prepared.evaluation.to_dict() | SHORT | settings)]


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if not key.endswith("_seconds")}


def reported(text: str) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in text.splitlines()]


def expected(prepared: Prepared, **settings: Any) -> list[dict[str, Any]]:
    config = TrialConfig(**SHORT | settings)
    return [timeless(report.to_dict()) for report in run_trial(config, prepared.evaluation, prepared)]


# ------------------------------------------------------------------------------------------- what it prints and writes


@BOTH
def test_format_json_is_the_report_at_the_end(
    main: Command, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words_of(prepared, tmp_path, seed=3), "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((tmp_path / "report.json").read_text())
    assert content["reports"][-1]["final"]
    for wrong in (["--format", "jason"], ["--format", "json", "--json"]):
        assert main([*words_of(prepared, tmp_path, seed=3), *wrong]) == 2
    assert "did you mean 'json'" in capsys.readouterr().err


@BOTH
def test_json_is_one_report_a_line_and_nothing_else(
    main: Command, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words_of(prepared, tmp_path, seed=3), "--json"]) == 0
    printed = capsys.readouterr()
    assert reported(printed.out) == expected(prepared, seed=3)
    assert printed.err == ""


def test_report_and_model_are_written(prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(words_of(prepared, tmp_path, sensitivity_weight=0.5, regularizer="triplet")) == 0
    written = json.loads((tmp_path / "report.json").read_text())
    assert TrialConfig(**written["config"]) == TrialConfig(**SHORT, sensitivity_weight=0.5, regularizer="triplet")
    assert EvaluationConfig(**written["evaluation"]) == prepared.evaluation
    assert written["data_fingerprint"] == prepared.data.fingerprint
    assert written["judge"] == {"crowd": "uncalibrated", **prepared.judge_quality._asdict()}
    assert [(report["epoch"], report["final"]) for report in written["reports"][:-1]] == [(1, False), (2, False)]
    assert written["reports"][-1]["final"] is True
    images = prepared.data.validation.images
    assert load_model(tmp_path / "model.pt")(images).logits.shape == (len(images), 10)


def test_elsewhere_than_on_a_terminal_it_speaks_in_plain_lines(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(words_of(prepared, tmp_path)) == 0
    printed = capsys.readouterr()
    assert "\r" not in printed.out + printed.err
    assert "\x1b" not in printed.out + printed.err
    lines = printed.err.splitlines()
    assert lines[0] == f"training: 2 epochs, results in {tmp_path}"
    pattern = r"epoch [12]: clean \d+\.\d%  sens \d+\.\d%  inv \d+\.\d%"
    assert [bool(re.fullmatch(pattern, line)) for line in lines[1:]] == [True, True]


def test_the_summary_tells_each_number_with_its_interval(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(words_of(prepared, tmp_path)) == 0
    summary, final = capsys.readouterr().out, expected(prepared)[-1]
    sizes = {
        "clean": ("clean_accuracy", 60),
        "sensitivity": ("sensitivity_accuracy", 60),
        "invariance": ("invariance_accuracy", int(final["invariance_effective_size"])),
    }
    for name, (key, size) in sizes.items():
        low, high = (100 * bound for bound in wilson_interval(round(final[key] * size), size))
        (line,) = [line for line in summary.splitlines() if line.split()[:1] == [name]]
        assert line.split()[1:5] == [f"{final[key]:.1%}", f"{low:.1f}", "to", f"{high:.1f}"]
    assert f"epoch {final['epoch']} of 2 chosen" in summary
    for name in ("stuck", "unchanged"):
        (line,) = [line for line in summary.splitlines() if line.split()[:1] == [name]]
        assert line.split()[1] == f"{final[f'invariance_{name}']:.1%}"
    said = " ".join(summary.split())
    assert "What people see says a judge: its crowd is uncalibrated" in said
    assert re.search(rf"they weigh as {int(final['invariance_effective_size'])} \(\d+ to \d+\) images would", said)
    assert str(tmp_path / "model.pt") in summary
    assert max(len(line) for line in summary.splitlines() if str(tmp_path) not in line) <= 80


def test_a_trial_that_collapsed_says_so(prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Batch-hard triplets at a weight that drowns everything else pull all embeddings together."""
    drowned = {"regularizer": "triplet", "sensitivity_weight": 1000, "learning_rate": 0.01, "embedding_size": 4}
    assert (
        __main__.main(words_of(prepared, tmp_path / "drowned", **drowned, architecture="cnn", sensitivity_steps=1)) == 0
    )
    alarm = re.search(
        r"the embeddings have collapsed \(effective rank ([\d.]+), spread ([\d.]+)%\)", capsys.readouterr().out
    )
    assert alarm is not None
    assert float(alarm[1]) < LEAST_RANK or float(alarm[2]) < 100 * LEAST_SPREAD
    assert __main__.main(words_of(prepared, tmp_path / "usual")) == 0
    assert "have collapsed" not in capsys.readouterr().out


def test_a_trial_gets_a_folder_of_its_own(
    prepared: Prepared,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTSWEEP_STORAGE", str(tmp_path))
    (tmp_path / "cache").symlink_to(cache_dir)
    for _ in range(2):
        assert __main__.main(words_of(prepared, tmp_path, epochs=1)[2:]) == 0
    folders = sorted((tmp_path / "trials").iterdir())
    assert len(folders) == 2
    assert all((folder / "model.pt").exists() for folder in folders)
    assert "model   " + str(folders[0]) in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ what it means


def test_the_last_word_counts() -> None:
    def configs(*words: str) -> tuple[TrialConfig, EvaluationConfig]:
        parser = argparse.ArgumentParser()
        __main__.add_arguments(parser)
        return __main__.configs(parser.parse_args(words))

    assert configs() == (TrialConfig(), EvaluationConfig())
    assert configs("--dataset", "mnist")[0].sensitivity_epsilon == 0.3
    config, evaluation = configs("--dataset", "mnist", "--preset", "paper/nll-sensitivity", "--set", "batch_size=64")
    assert (config.sensitivity_epsilon, config.batch_size, config.embedding_size) == (0.01, 64, 4)
    assert (evaluation.dataset, evaluation.eval_sensitivity_epsilon) == ("mnist", 0.3)
    assert configs("--epochs", "3", "--seed", "5")[0] == TrialConfig(epochs=3, seed=5)
    assert configs("--epochs", "3", "--set", "epochs=4", "--set", "epochs=5")[0].epochs == 5


def test_weights_of_zero_are_the_baseline(prepared: Prepared, tmp_path: Path) -> None:
    zero = {"invariance_weight": 0, "sensitivity_weight": 0, "regularizer": "ot_triplet", "margin": 2}
    assert __main__.main([*words_of(prepared, tmp_path / "zero", **zero), "--json"]) == 0
    assert __main__.main([*words_of(prepared, tmp_path / "plain"), "--preset", "baseline", "--json"]) == 0
    zero_file, plain_file = (from_bytes((tmp_path / which / "model.pt").read_bytes()) for which in ("zero", "plain"))
    torch.testing.assert_close(zero_file["weights"], plain_file["weights"], rtol=0, atol=0)


@BOTH
def test_help_names_every_preset_and_every_knob(main: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    words = "".join(capsys.readouterr().out.split())
    names = [*PRESETS, *TrialConfig.fields(), *EvaluationConfig.fields(), *DATASETS[:1]]
    assert [name for name in names if name not in words] == []


# ---------------------------------------------------------------------------------------------- what it refuses

REFUSED: dict[str, tuple[list[str], str]] = {
    "preset": (["--preset", "pgd"], "unknown preset 'pgd': did you mean 'pgd-at'?"),
    "empty preset": (["--preset", ""], "unknown preset ''"),
    "knob": (["--set", "margn=1"], "unknown setting 'margn': did you mean 'margin'?"),
    "data set": (["--dataset", "minst"], "dataset = 'minst': did you mean 'mnist'?"),
    "choice": (["--set", "regularizer=sinkhrn"], "regularizer = 'sinkhrn': did you mean 'sinkhorn'?"),
    "epsilon": (["--set", "sensitivity_epsilon=1.5"], "sensitivity_epsilon = 1.5: must be at least 0 and at most 1"),
    "epsilon of the judge": (["--set", "eval_invariance_epsilon=8"], "eval_invariance_epsilon = 8.0: must be"),
    "no value": (["--set", "margin"], "--set 'margin': write it as key=value"),
    "not a number": (["--epochs", "many"], "epochs = 'many': must be a whole number"),
    "empty": (["--seed", ""], "seed = '': must be a whole number"),
    "threads": (["--cpus-per-trial", "0"], "--cpus-per-trial 0: must be at least 1 and at most"),
    "too many threads": (["--cpus-per-trial", "99999"], "--cpus-per-trial 99999: must be at least 1 and at most"),
    "threads in words": (["--cpus-per-trial", "two"], "--cpus-per-trial: invalid int value: 'two'"),
    "device": (["--device", "cdua"], "--device cdua: this machine has cpu"),
    "batch": (["--set", "batch_size=1201"], "batch_size = 1201: must be at most 1200, the number of training images"),
    "batch of a subset": (["--set", "train_size=100"], "batch_size = 128: must be at most 100"),
    "option": (["--epoch", "3"], "unknown option '--epoch': did you mean '--epochs'?"),
    "home": (["--out", "~nobody-of-that-name/x"], "--out '~nobody-of-that-name/x': "),
    "folder": (["--out", "{file}"], "cannot write to '{file}': it is not a folder; name another with --storage or"),
    "folder below": (["--out", "{file}/a/b"], "cannot write to '{file}/a/b': Not a directory"),
    "storage": (["--storage", "{file}"], "cannot write to '{file}/trials': Not a directory"),
    "system's folder": (["--out", "/proc"], "cannot write to '/proc': "),
}


@BOTH
@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_word_gets_one_answer_and_status_2(
    main: Command, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words, message = REFUSED[case]
    assert main([word.format(file=tmp_path / "file") for word in words]) == 2
    printed = capsys.readouterr()
    assert message.format(file=tmp_path / "file") in printed.err
    assert printed.out == ""
    assert re.match(r"(trainer|otsweep): ", printed.err)
    assert printed.err.count("\n") == 1


def test_a_value_without_its_option_is_told_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["margin=0.1"]) == 2
    assert "unexpected 'margin=0.1': write --set margin=0.1" in capsys.readouterr().err


@BOTH
def test_a_trial_that_fails_says_why_and_gives_status_1(
    main: Command, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(prepared, tmp_path / "out", architecture="cnn", batch_size=20, learning_rate=10, weight_decay=10)
    assert main([*words, "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"\w+: failed: not finite in epoch 1: loss/clean_ce = (nan|inf)\n", printed.err)
    assert not (tmp_path / "out").exists(), "nothing came of it"


def test_the_folder_of_another_trial_is_refused(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main([*words_of(prepared, tmp_path), "--json"]) == 0
    before = (tmp_path / "report.json").read_bytes()
    capsys.readouterr()
    assert __main__.main([*words_of(prepared, tmp_path, seed=1), "--json"]) == 2
    assert "another configuration, with seed = 0 (not 1): give this trial a folder" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_bytes() == before


# ------------------------------------------------------------------------------------------ how it is stopped

LONG: dict[str, Any] = {"architecture": "cnn", "epochs": 25}


def started(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *words, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_stopped_by_ctrl_c_it_says_how_to_go_on_and_goes_on(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(prepared, tmp_path, **LONG)
    process = started(words)
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.startswith("Stopped. To go on ")
    assert errors.endswith(f"give the same command with\n  --out {tmp_path}\n")
    heard = reported("".join([*first, rest]))
    assert 2 <= len(heard) < LONG["epochs"]

    assert __main__.main([*words, "--json"]) == 0
    resumed = reported(capsys.readouterr().out)
    undisturbed = expected(prepared, **LONG)
    assert heard == undisturbed[: len(heard)]
    assert resumed == undisturbed[-len(resumed) :]
    written = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert [timeless(report) for report in written] == undisturbed, "every report is kept, each once"


def test_a_reader_that_goes_away_ends_it_quietly(prepared: Prepared, tmp_path: Path) -> None:
    process = started(words_of(prepared, tmp_path, **LONG))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_ctrl_c_before_the_first_epoch_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> EpochReport:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.invariance.prepare", interrupted)
    assert __main__.main(words_of(prepared, tmp_path / "out")) == 130
    assert capsys.readouterr().err == "trainer: stopped\n"
    assert not (tmp_path / "out").exists()
