"""The update of a Llama of 1 and of 8 billion weights on a GPU, beside its plan: outputs/gpu/report.json.

Without a GPU a tiny one is measured by the same code, and the report goes to a temporary folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lens.benchmarking.benchmark import MEASUREMENTS, benchmark
from lens.benchmarking.plan import forecast_update, measure_plan
from lens.files import CONFIGS, write_json
from lens.planning.forecast import GIB, Plan, make_plan
from lens.reporting.export import to_markdown
from lens.runs.provenance import describe_provenance

pytestmark = pytest.mark.gpu
WITHIN = 0.15  # of the plan's memory
REPORT = Path("outputs") / "gpu"
ON_A_CARD = [
    "model.dtype=bfloat16",
    "trainer.num_prompts_per_step=2",
    "trainer.rollouts.num_generations=16",
    "trainer.rollouts.max_completion_length=960",
    "trainer.memory.max_tokens_per_microbatch=16384",  # 16 x (64 + 960)
    "trainer.memory.logits_chunk_size=4096",
    "peak_size=16384",
    "rounds=3",
]
LLAMAS = {
    "Llama 1 B": [  # of the sizes of Llama-3.2-1B
        *ON_A_CARD,
        "model.architecture.hidden_size=2048",
        "model.architecture.intermediate_size=8192",
        "model.architecture.num_hidden_layers=16",
        "model.architecture.tie_word_embeddings=true",
    ],
    "Llama 8 B": ON_A_CARD,  # of the sizes of Llama-3.1-8B
    "tiny": [
        "model.dtype=float32",
        "model.architecture.vocab_size=1000",
        "model.architecture.hidden_size=64",
        "model.architecture.intermediate_size=224",
        "model.architecture.num_hidden_layers=4",
        "model.architecture.num_attention_heads=4",
        "model.architecture.num_key_value_heads=2",
        "trainer.num_prompts_per_step=2",
        "trainer.rollouts.num_generations=4",
        "trainer.rollouts.max_completion_length=120",
        "trainer.memory.max_tokens_per_microbatch=512",  # 4 x (8 + 120)
        "trainer.memory.num_threads=1",
        "made_up.prompt_length=8",
        "peak_size=64",
        "rounds=2",
    ],
}
CHECKPOINTING = ["trainer.memory.gradient_checkpointing=true", "trl.gradient_checkpointing=true"]
# What is trained, from the most memory to the least: the first that fits is measured.
WAYS = {
    "all weights": [],
    "all weights, gradient checkpointing": CHECKPOINTING,
    "adapters, gradient checkpointing": [*CHECKPOINTING, "+model/lora=default"],
}


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def overrides(llama: str, way: str) -> list[str]:
    return ["part=plan", "model=llama3.1_8b", *LLAMAS[llama], *WAYS[way]]


@cache
def plan_of(llama: str, way: str) -> Plan:
    return forecast_update(composed("benchmark", *overrides(llama, way)))


@dataclass(frozen=True)
class Choice:
    """Which way of training fits, and why: the way, or None, and a sentence."""

    way: str | None
    why: str


def choose(llama: str, memory_gib: float | None = None) -> Choice:
    """The first way that fits into a card's memory, by the plan; None is this machine's."""
    said = []
    for way in WAYS:
        made = plan_of(llama, way)
        share = made.config.usable_memory
        usable = made.usable / GIB if memory_gib is None else share * memory_gib
        needed = made.memory_needed() / GIB
        said.append(f"{way}: {needed:.1f} GiB of {usable:.1f} that can be used")
        if needed <= usable:
            return Choice(way, "; ".join(said))
    return Choice(None, "; ".join(said))


def measure(llama: str, folder: Path) -> dict[str, Any]:
    """Measure a Llama's update, and return what the report says of it."""
    choice = choose(llama)
    if choice.way is None:
        return {"skipped": f"its update does not fit: {choice.why}"}
    table = benchmark(composed("benchmark", *overrides(llama, choice.way)), folder / llama.replace(" ", "_"))
    found, made = json.loads((folder / llama.replace(" ", "_") / MEASUREMENTS).read_text()), plan_of(llama, choice.way)
    parts = {name: size / GIB for name, size in (made.states() | made.update()).items()}
    return {
        "trained": choice.way,
        "why": choice.why,
        "overrides": overrides(llama, choice.way),
        "matrix_peak_flops_per_s": found["machine"]["matrix_peak_flops_per_s"],
        "plan_gib": parts,
        "rows": found["rows"],
        "table": table.to_dict("records"),
    }


def write_report(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Write report.json, and table.md for docs/performance.md."""
    on_card = torch.cuda.is_available()
    card = {
        "device": torch.cuda.get_device_name() if on_card else "CPU",
        "memory_gib": torch.cuda.get_device_properties().total_memory / GIB if on_card else None,
    }
    write_json(folder / "report.json", {**card, "provenance": describe_provenance(), "models": entries})
    lines = [
        {"model": f"{name}, {entry['trained']}", "arm": line["update"], **line}
        for name, entry in entries.items()
        for line in entry.get("table", [])
    ]
    (folder / "table.md").write_text(to_markdown(pd.DataFrame(lines).drop(columns="update")) if lines else "")


ENTRIES: dict[str, dict[str, Any]] = {}  # of this session's report


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: it waits for a card")
@pytest.mark.parametrize("llama", [name for name in LLAMAS if name != "tiny"])
def test_an_update_takes_the_memory_of_its_plan(llama):
    ENTRIES[llama] = entry = measure(llama, REPORT)
    write_report(REPORT, ENTRIES)
    if "skipped" in entry:
        pytest.skip(entry["skipped"])
    for row in entry["rows"]:
        if row["arm"] == "lens":
            assert row["tensors_gib"] == pytest.approx(row["forecast_gib"], rel=WITHIN)


@pytest.mark.parametrize("way", WAYS)
def test_a_tiny_update_takes_the_memory_of_its_plan_too(way):
    """Large layers and small logits; where layers are computed again, also large logits."""
    for changes in (["model.architecture.vocab_size=100"], []) if way in list(WAYS)[1:] else ([],):
        config = composed("benchmark", *overrides("tiny", way), *changes, "rounds=1", "warmup=0")
        rows = measure_plan(OmegaConf.create(OmegaConf.to_container(config)))
        assert rows[0]["tensors_gib"] == pytest.approx(rows[0]["forecast_gib"], rel=WITHIN)


def test_the_report_adds_up(tmp_path):
    entry = measure("tiny", tmp_path)
    write_report(tmp_path, {"tiny": entry})
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["models"]["tiny"] == entry and entry["trained"] == "all weights"
    assert report["provenance"]["packages"]["torch"] == torch.__version__
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 224
    weights = 2 * 1000 * 64 + 4 * (layer + 2 * 64) + 64
    tokens, completion_tokens = 2 * (8 + 4 * 120), 2 * 4 * 120
    pairs = 2 * (8 * 9 / 2 + 4 * (120 * 8 + 120 * 121 / 2))
    flops = 6 * tokens * (4 * (layer + 2 * 64) + 64) + 12 * 64 * 4 * pairs + 6 * completion_tokens * 1000 * 64
    rows = [row for row in entry["rows"] if row["arm"] == "lens"]
    assert [row["round"] for row in rows] == [0, 1]
    for row in rows:
        assert row["parameters"] == row["trained"] == weights
        assert row["held_gib"] * GIB == 3 * 4 * weights  # weights and both moments in float32
        assert row["gradients_gib"] * GIB == 4 * weights
        assert row["update_flops"] == pytest.approx(flops) and row["update_s"] > 0
        assert row["forecast_gib"] == pytest.approx(sum(entry["plan_gib"].values()))
        assert row["tensors_gib"] == pytest.approx(row["forecast_gib"], rel=WITHIN)
    peak = entry["matrix_peak_flops_per_s"]["float32"]
    seconds = sorted(row["update_s"] for row in rows)
    line = entry["table"][0]
    share = 100 * flops / peak / (sum(seconds) / 2)
    assert float(line["share of peak"].split()[0]) == pytest.approx(share, abs=0.06)
    markdown = (tmp_path / "table.md").read_text().splitlines()
    assert len(markdown) == 2 + len(entry["table"]) and markdown[2].startswith("| tiny, all weights | lens |")


def test_the_plan_of_an_update_is_that_of_the_command():
    by_command = make_plan(
        composed(
            "plan",
            *("experiment=none", "dataset=math", "model=llama3.1_8b", "model/lora=default", "model.dtype=bfloat16"),
            *("model.prompt.max_length=64", "trainer.rollouts.max_completion_length=960", "trainer.max_steps=1"),
            *("trainer.memory.gradient_checkpointing=true", "num_gpus=1", "sampler.max_num_seqs=1"),
        )
    )
    made = plan_of("Llama 8 B", "adapters, gradient checkpointing")
    assert made.states() == by_command.states() and made.update() == by_command.update()


@pytest.mark.parametrize("way", WAYS)
def test_the_page_says_what_each_way_needs(way):
    needs = [f"{plan_of(llama, way).memory_needed() / GIB:.1f} GiB" for llama in ("Llama 1 B", "Llama 8 B")]
    page = (CONFIGS.parent / "docs" / "performance.md").read_text()
    assert f"| {way} | {' | '.join(needs)} |" in page


@pytest.mark.parametrize(
    ("memory_gib", "one", "eight"),
    [
        (16, "adapters, gradient checkpointing", None),
        (40, "all weights, gradient checkpointing", "adapters, gradient checkpointing"),
        (80, "all weights", "adapters, gradient checkpointing"),
        (140, "all weights", "adapters, gradient checkpointing"),
        (180, "all weights", "all weights, gradient checkpointing"),
    ],
)
def test_what_fits_is_chosen(memory_gib, one, eight):
    assert choose("Llama 1 B", memory_gib).way == one
    choice = choose("Llama 8 B", memory_gib)
    assert choice.way == eight and "all weights: " in choice.why
