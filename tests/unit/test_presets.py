from __future__ import annotations

import pytest

from trainer.config import TrialConfig
from trainer.errors import InputError
from trainer.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_valid_configuration_and_names_only_what_differs(name: str) -> None:
    default = TrialConfig().to_dict()
    config = TrialConfig.from_mapping(preset(name)).to_dict()
    assert {key for key in config if config[key] != default[key]} == set(preset(name))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_leaves_to_the_data_and_the_user_what_is_theirs(name: str) -> None:
    assert not {"epochs", "seed", "architecture"} & preset(name).keys()


def test_published_configurations_are_all_there() -> None:
    published = {name.removeprefix("paper/"): TrialConfig(**preset(name)) for name in PRESETS if "paper/" in name}
    assert set(published) == {
        "clean-nll",
        "clean-nll-norm",
        "nll-sensitivity",
        "nll-sensitivity-norm",
        "nll-sensitivity-norm-invar",
        "nll-invariance",
        "nll-ml-sensitivity",
        "nll-ml-invariance",
        "nll-ml-sens-invar",
    }
    for name, config in published.items():
        assert (config.regularizer == "triplet") == ("ml" in name)
        assert (config.norm_weight > 0) == ("norm" in name or "ml" in name)
        assert config.uses_sensitivity == ("sens" in name)
        assert config.uses_invariance == (name in ("nll-invariance", "nll-ml-invariance", "nll-ml-sens-invar"))


def test_baselines_get_the_same_attack() -> None:
    """Check the steps of their papers on MNIST, which are the same for all of them."""
    for name in ("pgd-at", "trades", "tla", "sat"):
        settings = preset(name)
        assert (settings["sensitivity_steps"], settings["sensitivity_step_size"]) == (40, 0.01), name


def test_preset_is_a_copy() -> None:
    preset("trades")["trades_weight"] = 0.0
    assert preset("trades")["trades_weight"] == 6.0


def test_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown preset 'papr/clean-nl': did you mean 'paper/clean-nll'\?"):
        preset("papr/clean-nl")
