"""Decides whether a run logs to W&B online or offline: it looks for a key."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

from wandb.sdk import wandb_setup

from lens.errors import ConfigError

WANDB_MODES = ("auto", "online", "offline", "disabled")
FORMER_HOSTS = {"api.forge.coreweave.com": "api.wandb.ai"}  # W&B takes a key that was stored under the old name too


def resolve_wandb_mode(mode: str) -> str:
    """The mode to run W&B in; auto is online where a key is set and offline elsewhere.

    Raises:
        ConfigError: an unknown mode, or online without a key.
    """
    if mode not in WANDB_MODES:
        raise ConfigError("tracking.wandb.mode", mode, f"one of {', '.join(WANDB_MODES)}")
    has_key = has_wandb_key()
    if mode == "online" and not has_key:
        valid = "a key in WANDB_API_KEY or from `wandb login`; without one: offline (upload later with `wandb sync`)"
        raise ConfigError("tracking.wandb.mode", mode, valid)
    if mode == "auto":
        return "online" if has_key else "offline"
    return mode


def has_wandb_key() -> bool:
    """Whether W&B would find a key: in WANDB_API_KEY, or where `wandb login` leaves it for the server in its settings.

    W&B has no public lookup that does not ask at the terminal; its settings do know which server is meant.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    host = urlparse(wandb_setup.singleton().settings.base_url).netloc
    return host in hosts or FORMER_HOSTS.get(host) in hosts
