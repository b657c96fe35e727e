"""What an old name is said to be called now is there, and what was moved is refused under its old name."""

from __future__ import annotations

import copy

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from lens.config.checks import check_values
from lens.config.moved import MOVED_KEYS, MOVED_OPTIONS
from lens.errors import ConfigError
from lens.files import CONFIGS
from tests.support.configs import composed

ABSENT = object()


def test_every_moved_key_is_in_the_config_under_its_new_name_alone():
    config = composed()
    for old, new in MOVED_KEYS.items():
        assert OmegaConf.select(config, new, default=ABSENT) is not ABSENT, new
        assert OmegaConf.select(config, old, default=ABSENT) is ABSENT, old
    assert len(set(MOVED_KEYS.values())) == len(MOVED_KEYS)


@pytest.mark.parametrize(("group", "option"), MOVED_OPTIONS, ids=map("=".join, MOVED_OPTIONS))
def test_every_moved_option_is_a_file_under_its_new_name_alone(group, option):
    new_group, new_option = MOVED_OPTIONS[group, option].split("=")
    assert (CONFIGS / new_group / f"{new_option}.yaml").is_file()
    assert not (CONFIGS / group / f"{option}.yaml").exists()
    if group == "experiment":
        assert composed(f"{new_group}={new_option}").hydra.runtime.choices[new_group] == new_option


@pytest.fixture(scope="module")
def config() -> DictConfig:
    return composed()


@pytest.mark.parametrize("old", MOVED_KEYS)
def test_an_old_key_that_is_added_is_refused_with_the_new_one(config, old):
    added = copy.deepcopy(config)
    OmegaConf.update(added, old, 1, force_add=True)  # as +KEY=1 does
    with pytest.raises(ConfigError) as error:
        check_values(added)
    assert str(error.value) == f"{old}=1: since version 0.2 it is {MOVED_KEYS[old]}"


def test_an_old_key_is_no_key():
    with pytest.raises(ConfigCompositionException):
        composed(f"{next(iter(MOVED_KEYS))}=1")
