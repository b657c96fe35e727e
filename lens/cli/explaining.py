"""Turns an error in a config into one line that names the key, the value and what would be valid."""

from __future__ import annotations

import difflib
import re

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lens.config.moved import MOVED_KEYS, MOVED_OPTIONS
from lens.errors import ConfigError
from lens.files import CONFIGS

BAD_CONFIG = (ConfigError, HydraException, OmegaConfBaseException)
FOLDERED = "experiment"  # the group whose options lie in folders too: experiment=map/alpha


def explain(error: BaseException, config_name: str, arguments: list[str]) -> str:
    """Return one line for an error in the config: a ConfigError's message, or Hydra's with key, value and options."""
    cause = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return str(cause)
        cause = cause.__cause__
    message = " ".join(str(error).split())
    if isinstance(error.__cause__, ValueError) and (place := re.search(r"full_key: (\S+)", message)):
        return f"{place[1]}: {error.__cause__}"  # an option that a part of the run refused when it was made
    # Hydra names the group, the option and the other options; an option in a folder has the folder in its name.
    if option := re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.*?) Config search", message):
        return explain_unknown_option(option[2], option[1].removeprefix(f"{option[2]}/"), option[3].split())
    if group := re.search(r"Could not find '([^']+)'", message):
        return explain_unknown_option(*group[1].split("/", 1), []) if "/" in group[1] else message
    if unknown := re.search(r"Could not override '([^']+)'", message):
        return explain_unknown_key(unknown[1].lstrip("+~"), config_name, arguments)
    return message


def explain_unknown_option(group: str, option: str, known: list[str]) -> str:
    """Return a line saying that a config group has no such option, with its new name or all options that exist.

    Args:
        group, option: as they were typed.
        known: the options that Hydra names. They lack those in folders, as experiments are.
    """
    if moved := MOVED_OPTIONS.get((group, option)):
        return f"{group}={option}: since version 0.2 it is {moved}"
    folder = CONFIGS / group
    files = folder.rglob("*.yaml") if group == FOLDERED else folder.glob("*.yaml")
    options = {*known, *(str(file.relative_to(folder).with_suffix("")) for file in files)}
    return str(ConfigError(group, option, f"must be one of {', '.join(sorted(options))}"))


def explain_unknown_key(key: str, config_name: str, arguments: list[str]) -> str:
    """Return a line saying that a key does not exist, with its new name, or the nearest key and the keys beside it."""
    value = next((a.split("=", 1)[1] for a in arguments if a.lstrip("+~").startswith(f"{key}=")), None)
    if moved := MOVED_KEYS.get(key):
        return str(ConfigError(key, value, f"since version 0.2 it is {moved}"))
    config = compose_known(config_name, arguments)
    group, _, folder = key.partition("/")
    if value and group == FOLDERED and group in config.hydra.runtime.choices and (CONFIGS / key).is_dir():
        return explain_folder_as_group(group, folder, value)
    keys = list_keys(config)
    nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    parent = key.rpartition(".")[0]
    beside = [other for other in keys if other.rpartition(".")[0] == parent and "._" not in other]
    hints = [f"did you mean {nearest[0]}?"] if nearest else []
    hints += [f"valid here: {', '.join(beside)}"] if beside else []
    return str(ConfigError(key, value, "; ".join(["no such key", *hints])))


def explain_folder_as_group(group: str, folder: str, value: str) -> str:
    """Return a line for experiment/map=alpha, as ``--help`` lists folders and options, that says what to type."""
    options = [f"{folder}/{option}" for option in value.split(",")]
    for option in options:
        if not (CONFIGS / group / f"{option}.yaml").is_file():
            return explain_unknown_option(group, option, [])
    return str(ConfigError(f"{group}/{folder}", value, f"type {group}={','.join(options)}"))


def compose_known(config_name: str, arguments: list[str]) -> DictConfig:
    """Compose a config, Hydra's part included, with those group choices among the arguments that it takes."""
    groups = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_dir()}
    known: list[str] = []
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose(config_name, return_hydra_config=True)
        for choice in [a for a in arguments if a.split("=")[0] in groups and "," not in a]:
            try:
                config = hydra.compose(config_name, overrides=[*known, choice], return_hydra_config=True)
            except BAD_CONFIG:  # the choice that is being explained, or one like it
                continue
            known.append(choice)
    return config


def list_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """List the dotted keys of a composed config, without Hydra's own."""
    found = []
    for key in config:
        name = f"{prefix}{key}"
        if name == "hydra":
            continue
        found.append(name)
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            found += list_keys(child, f"{name}.")
    return found
