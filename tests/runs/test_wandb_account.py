"""Where W&B's key is looked for, and the mode that follows from it."""

from __future__ import annotations

from urllib.parse import urlparse

import pytest
import wandb

from lens.errors import ConfigError
from lens.runs.wandb_account import has_wandb_key, resolve_wandb_mode


def log_in(home, host: str | None = None) -> None:
    host = host or urlparse(wandb.Settings().base_url).netloc
    (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")


def test_a_key_is_found_where_wandb_would_find_it(home, monkeypatch):
    assert not has_wandb_key()
    log_in(home, "example.org")
    assert not has_wandb_key()
    for host in (None, "api.wandb.ai"):  # where `wandb login` writes it today, and where it wrote it before
        log_in(home, host)
        assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.org:8080")
    wandb.teardown()
    assert not has_wandb_key()
    log_in(home, "wandb.example.org:8080")
    assert has_wandb_key()
    (home / ".netrc").write_text("wandb.example.org:8080 0000")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


def test_a_key_for_a_server_of_ones_own_is_found(home):
    """As ``wandb login --host`` leaves it: the server in W&B's settings file, the key in .netrc."""
    settings = home / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    log_in(home)
    assert not has_wandb_key()
    log_in(home, "wandb.example.org")
    assert has_wandb_key()


def test_the_mode_follows_the_key(home):
    assert resolve_wandb_mode("auto") == "offline"
    assert [resolve_wandb_mode(mode) for mode in ("offline", "disabled")] == ["offline", "disabled"]
    with pytest.raises(ConfigError, match="WANDB_API_KEY") as error:
        resolve_wandb_mode("online")
    assert error.value.key == "tracking.wandb.mode"
    log_in(home)
    assert [resolve_wandb_mode(mode) for mode in ("auto", "online", "offline")] == ["online", "online", "offline"]
    with pytest.raises(ConfigError, match="must be one of auto, online, offline, disabled"):
        resolve_wandb_mode("sometimes")
