"""Measures the update of a model with random weights beside what scripts/plan.py forecasts for it.

The model has the numbers of model.architecture, so that nothing is fetched. Prompts of one length and answers of the
longest length fill the micro-batches, which is what a plan's memory is for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM

from lens.benchmarking.measuring import alternate, format_paired_ratio, format_share, seconds_at_peak, take_medians
from lens.benchmarking.meter import Row, TensorMemory
from lens.benchmarking.update import measure_lens, measure_other, open_trl_where_it_is
from lens.benchmarking.workload import Batch, Workload, make_every_answer_teach, make_up_rollouts
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.models.layers import check_layers
from lens.models.loading import DTYPES, check_attention, use_flex_attention
from lens.models.lora import add_adapters
from lens.models.packing import share_prompts
from lens.models.tiny import make_tokenizer
from lens.planning.architecture import architecture_of, find_numbers
from lens.planning.forecast import GIB, Plan
from lens.problems.prompts import Prompt
from lens.seeding import derive_seed


def measure_plan(config: DictConfig) -> list[Row]:
    """Measure updates of lens and, where TRL is at hand, of TRL.

    Each is made twice in a round: once for its time, and once for its memory.

    Returns:
        Rows that hold, beside what `measure_lens` returns,

        * parameters, and how many of them are trained;
        * held_gib: weights, adapters and optimizer state, added up tensor by tensor;
        * gradients_gib: the gradients that the update leaves, likewise;
        * tensors_gib: held_gib and the most that torch's tensors take above it in an update;
        * forecast_gib and forecast_flops: what the plan says of lens's update.

    Raises:
        ConfigError: by the plan, the update does not fit into the memory of this machine.
    """
    forecast = forecast_update(config)
    needed, usable = forecast.memory_needed(), forecast.usable
    if needed > usable:
        valid = (
            f"must be a model whose update fits: it needs {needed / GIB:.1f} GiB, and {usable / GIB:.1f} can be used"
        )
        raise ConfigError("model.name_or_path", config.model.name_or_path, valid)
    work = make_random_work(config)
    batch = make_every_answer_teach(make_up_rollouts(work))
    tokens = sum(len(p.token_ids) for p in batch.rollouts.prompts) * batch.rollouts.num_generations
    said = {
        "parameters": forecast.model.parameters + forecast.model.adapters,
        "trained": forecast.model.trained,
        "forecast_gib": needed / GIB,
        "forecast_flops": forecast.update_flops(tokens + int(batch.rollouts.lengths.sum())),
    }
    with open_trl_where_it_is(work) as trl_gradient:
        arms = {"lens": partial(measure_lens, work, batch)}
        if trl_gradient is not None:
            arms["TRL"] = partial(measure_other, work, batch, trl_gradient)
        turns = {name: partial(measure_twice, work, arm) for name, arm in arms.items()}
        return [row | said for row in alternate(turns, rounds=config.rounds, warmup=config.warmup)]


def measure_twice(work: Workload, update: Callable[[int], Row], number: int) -> Row:
    """Return the row of an update, and the memory of another one, which also makes its gradients."""
    row = update(number)
    work.model.zero_grad()
    states = [value for state in work.optimizer.state.values() for value in state.values()]
    held = sum(tensor.nbytes for tensor in [*work.model.parameters(), *states] if tensor.dim()) / GIB
    with TensorMemory() as memory:
        update(number)
    gradients = sum(p.grad.nbytes for p in work.model.parameters() if p.grad is not None) / GIB
    return row | {"held_gib": held, "gradients_gib": gradients, "tensors_gib": held + memory.above}


def forecast_update(config: DictConfig) -> Plan:
    """Return the plan of the update that `measure_plan` measures, on one GPU with the memory of this machine.

    The other assumptions are those of configs/plan.yaml.
    """
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties().total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    prompt, answer = config.made_up.prompt_length, config.trainer.rollouts.max_completion_length
    here = {
        "gpu_memory_gib": memory / GIB,
        "mean_prompt_length": prompt,
        "mean_completion_length": answer,
        "sampler": config.engines.transformers,
    }
    lengths = {"model": {"prompt": {"max_length": prompt}}}
    whole = OmegaConf.merge({**read_assumptions(), **here}, config, lengths)
    return Plan(whole, architecture_of(config), problems=0, evaluated=0)


def read_assumptions() -> DictConfig:
    """Return the assumptions of configs/plan.yaml."""
    config = OmegaConf.load(CONFIGS / "plan.yaml")
    return OmegaConf.masked_copy(config, [key for key in config if key not in ("defaults", "hydra")])


def make_random_work(config: DictConfig) -> Workload:
    """Make a model with random weights, with adapters if model.lora says so, and prompts of random tokens.

    Raises:
        ConfigError: the layers or the attention cannot do what is asked.
    """
    check_attention(config.model.attention)
    torch.manual_seed(config.seed)
    numbers, attention = find_numbers(config.model), config.model.attention
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            numbers,
            dtype=DTYPES[config.model.dtype],
            attn_implementation="sdpa" if attention == "flex_attention" else attention,
            trust_remote_code=False,
        )
    share_prompts(model.eval())
    use_flex_attention(model, attention)
    if config.model.lora is not None:
        add_adapters(model, config.model.lora, seed=config.seed)
    check_layers(model, config.trainer.memory)
    count, generator = config.trainer.num_prompts_per_step, torch.Generator()
    generator.manual_seed(derive_seed(config.seed, "prompts"))
    ids = torch.randint(numbers.vocab_size, (count, config.made_up.prompt_length), generator=generator)
    prompts = [Prompt(str(number), tuple(row)) for number, row in enumerate(ids.tolist())]
    return Workload(config, model, make_tokenizer(), Batch([""] * count, prompts, [""] * count))


def tabulate_plan(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Return a table of the medians of each update, and the plan's numbers beside those of lens.

    The plan's seconds are those of its FLOPs at the share of the peak that configs/plan.yaml assumes.
    """
    middle, utilization, table = take_medians(rows), read_assumptions().training_utilization, []
    for arm, values in middle.iterrows():
        line = {
            "update": arm,
            "parameters M": f"{values.parameters / 1e6:.1f}",
            "trained M": f"{values.trained / 1e6:.1f}",
            "GiB": f"{values.tensors_gib:.2f}",
            "plan's GiB": "-",
            "measured / plan": "-",
            "seconds": f"{values.update_s:.2f}",
            "plan's seconds": "-",
            "TRL / this": format_paired_ratio(rows, "update_s", "TRL", arm) if "TRL" in middle.index else "-",
            "model TFLOP": f"{values.update_flops / 1e12:.3g}",
            "share of peak": format_share(values, peaks),
        }
        if arm == "lens":
            at_peak = seconds_at_peak(values, peaks) * values.forecast_flops / values.update_flops
            line |= {
                "plan's GiB": f"{values.forecast_gib:.2f}",
                "measured / plan": f"{values.tensors_gib / values.forecast_gib:.2f}",
                "plan's seconds": f"{at_peak / utilization:.2f}",
            }
        table.append(line)
    return pd.DataFrame(table)
