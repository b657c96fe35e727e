"""Looks for a W&B key, and decides by it whether a run logs to W&B online or offline."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

from wandb.sdk import wandb_setup

from lens.errors import ConfigError

WANDB_MODES = ("auto", "online", "offline", "disabled")
FORMER_HOSTS = {"api.forge.coreweave.com": "api.wandb.ai"}  # W&B also accepts a key stored under the old name


def resolve_wandb_mode(mode: str) -> str:
    """Return the mode to run W&B in; "auto" means online if there is a key, else offline.

    Raises:
        ConfigError: the mode is unknown, or it is online and there is no key.
    """
    if mode not in WANDB_MODES:
        raise ConfigError("tracking.wandb.mode", mode, f"must be one of {', '.join(WANDB_MODES)}")
    has_key = has_wandb_key()
    if mode == "online" and not has_key:
        valid = "needs a key in WANDB_API_KEY or from `wandb login`; or take offline and upload with `wandb sync`"
        raise ConfigError("tracking.wandb.mode", mode, valid)
    if mode == "auto":
        return "online" if has_key else "offline"
    return mode


def has_wandb_key() -> bool:
    """Return whether W&B would find a key: in WANDB_API_KEY, or where `wandb login` stores it for the current server.

    W&B's own lookup can ask at the terminal, so this one reads the netrc file. The server comes from W&B's settings.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    host = urlparse(wandb_setup.singleton().settings.base_url).netloc
    return host in hosts or FORMER_HOSTS.get(host) in hosts
