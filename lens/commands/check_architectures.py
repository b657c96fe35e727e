"""Compares log-probabilities on tiny random models of many architectures with transformers' own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import transformers
from omegaconf import DictConfig
from transformers.utils import logging as transformers_logging

from lens.errors import ConfigError
from lens.files import replacing
from lens.models.architectures import ARCHITECTURES, END_TOKEN, make_random_model
from lens.models.head import find_logit_transform
from lens.models.logprobs import ForwardPass
from lens.models.packing import share_prompts
from lens.models.probe import TOLERANCES, Difference, compare_forward_passes, is_within, make_probe
from lens.problems.prompts import Prompt
from lens.progress import progress_bar
from lens.sampling.transformers import TransformersSampler
from lens.terminal import show_table
from lens.training.weight_sync import probe_engine

PROMPTS = [Prompt("nine", tuple(range(3, 12))), Prompt("long", tuple(range(20, 45))), Prompt("short", (50, 60, 70, 80))]
TEMPERATURE = 0.7


class Checked(NamedTuple):
    """What was found for one architecture.

    Attributes:
        architecture: transformers' name.
        logits: what the model does to the outputs of its head; empty: nothing.
        shares_prompts: whether answers to a question share the pass over it.
        difference: between training and the model's own forward pass, in float32.
        in_bfloat16: the same with trainer.memory.autocast=bfloat16.
        engine: empty if sampler=transformers agrees with the model token by token; else why it is refused.
    """

    architecture: str
    logits: str
    shares_prompts: bool
    difference: Difference
    in_bfloat16: Difference
    engine: str


class OnlyIds:
    """Stands in for a tokenizer: tiny random models have no text."""

    eos_token_id, name_or_path = END_TOKEN, "random"

    def batch_decode(self, rows: list[list[int]], **_: bool) -> list[str]:
        """Return the ids as text."""
        return [" ".join(map(str, row)) for row in rows]


def check_architecture(name: str) -> Checked:
    """Make a tiny random model, and compare all ways of computing log-probabilities on it.

    Args:
        name: transformers' name of the architecture, a key of ARCHITECTURES.
    """
    model = make_random_model(name)
    shares = share_prompts(model)
    scale, cap = find_logit_transform(model.config)
    logits = [f"times {scale:g}"] if scale != 1 else []
    logits += [] if cap is None else [f"soft cap {cap:g}"]
    plain = ForwardPass(TEMPERATURE, max_tokens_per_microbatch=4096, logits_chunk_size=5)
    found = compare_forward_passes(model, [plain, replace(plain, autocast="bfloat16")], make_probe(PROMPTS))
    engine = ""
    try:
        sampler = TransformersSampler(model, OnlyIds(), max_num_seqs=8)
        probe_engine(sampler, model, PROMPTS, plain)
    except ConfigError as error:
        engine = error.valid
    return Checked(name, ", ".join(logits), shares, *found, engine)


def check_architectures(config: DictConfig) -> None:
    """Check the architectures of a config, print a table, and write it to a page if the config names one.

    Raises:
        ConfigError: an architecture is unknown, or training computes other log-probabilities than one of the models.
    """
    names = list(ARCHITECTURES if config.architectures is None else config.architectures)
    if unknown := [name for name in names if name not in ARCHITECTURES]:
        raise ConfigError("architectures", unknown[0], f"must be some of {', '.join(ARCHITECTURES)}")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)  # fastest for tiny models
    found = []
    with progress_bar(len(names), desc="architectures") as bar:
        for name in names:
            found.append(check_architecture(name))
            bar.update()
    table = make_table(found)
    show_table("Log-probabilities by architecture", table)
    if config.file is not None:
        write_page(Path(config.file), table)
    if wrong := list(table["architecture"][table["result"] == "WRONG"]):
        raise ConfigError("architectures", wrong, "must be models whose log-probabilities agree")


def make_table(found: list[Checked]) -> pd.DataFrame:
    """Return one row for each architecture, as text."""
    rows = [
        {
            "architecture": each.architecture,
            "logits": each.logits or "plain",
            "prompts": "shared" if each.shares_prompts else "one each",
            "log-probabilities": f"{each.difference.largest:.0e}",
            "gradient": f"{each.difference.gradient:.0e}",
            "in bfloat16": f"{each.in_bfloat16.largest:.2f}"
            + ("" if is_within(each.in_bfloat16, TOLERANCES["bfloat16"]) else ", refused"),
            "engines": "vllm" if each.engine else "transformers, vllm",
            "result": "right" if is_within(each.difference, TOLERANCES["float32"]) else "WRONG",
        }
        for each in found
    ]
    return pd.DataFrame(rows)


PAGE = """# Models

A run takes any causal language model of transformers whose log-probabilities it computes right. Before the first
update every run compares, on two completions of one prompt, the way training computes with the model's own forward
pass on a padded batch: log-probabilities at the training temperature, and a gradient. If they differ by more than
rounding, the run ends with the numbers and with what to set ([probe.py](../lens/models/probe.py)). After the first sync
of an engine, its log-probabilities are compared with the policy's as well.

The table has tiny random models of {count} architectures, with logits as large as a trained model's, and with windows
shorter than the sequences. `python scripts/check_architectures.py file=docs/models.md` made it, with transformers
{transformers} and torch {torch}. The last digits differ between machines.

* **logits**: what the model does to the outputs of its head. The head computes it a few tokens at a time, with its
  gradient.
* **prompts**: whether the answers to a question share the pass over it. They do where attention alone mixes tokens and
  every layer tells its attention who shares what. Elsewhere each answer is computed with a prompt of its own.
* **log-probabilities**, **gradient**: the largest difference of a token in float32, and the norm of the gradients'
  difference over that of the model's own. Allowed: {largest:g} and {gradient:g}.
* **in bfloat16**: the largest difference of a token under `trainer.memory.autocast=bfloat16`. The logits of these
  models are large, and so is their rounding. Allowed: {coarse:g}, and {mean:g} in the mean. A run that is refused here
  goes on with `autocast=null`.
* **engines**: the samplers that run it. `sampler=transformers` refuses a model that keeps its state in a way of its
  own. Whether vLLM knows an architecture is vLLM's matter; it refuses others in one line.

{table}
"""


def write_page(file: Path, table: pd.DataFrame) -> None:
    """Write the page of documentation with this table."""
    lines = ["| " + " | ".join(row) + " |" for row in [table.columns, ["---"] * len(table.columns), *table.values]]
    fine, coarse = TOLERANCES["float32"], TOLERANCES["bfloat16"]
    with replacing(file) as unfinished:
        unfinished.write_text(
            PAGE.format(
                count=len(table),
                transformers=transformers.__version__,
                torch=torch.__version__,
                largest=fine.largest,
                gradient=fine.gradient,
                coarse=coarse.largest,
                mean=coarse.mean,
                table="\n".join(lines),
            )
        )
