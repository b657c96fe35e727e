"""Refuses configs that cannot work, before a run starts: a table of rules for each key, and rules between keys."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf
from transformers import SchedulerType

from lens.config.keys import RESUME_KEYWORDS
from lens.config.moved import MOVED_KEYS
from lens.errors import ConfigError
from lens.evaluation.scores import ks_up_to
from lens.grading.judge import Unjudgeable
from lens.grading.pool import Reward
from lens.losses.aggregation import LossAggMode
from lens.losses.importance import ImportanceSampling


def as_path(key: str, value: Any) -> Path:
    """Return a config value as a path.

    Raises:
        ConfigError: the value is not a string.
    """
    if not isinstance(value, str):
        raise ConfigError(key, value, "must be a file or folder")
    return Path(value)


# The type that a value must have, what must hold for it, and the words that say what it must be.
Rule = tuple[type | tuple[type, ...], Callable[[Any], bool], str]
NUMBER = (int, float)


def at_least(least: int) -> Rule:
    """Return the rule for an integer that is at least ``least``."""
    return int, lambda v: v >= least, f"an integer >= {least}"


def number(holds: Callable[[float], bool], valid: str) -> Rule:
    """Return the rule for a finite number for which ``holds`` is true."""
    return NUMBER, lambda v: math.isfinite(v) and holds(v), valid


def one_of(*options: str) -> Rule:
    """Return the rule for a string that is one of the options."""
    return str, lambda v: v in options, f"one of {', '.join(options)}" if len(options) > 1 else options[0]


def are_layers(value: str | ListConfig) -> bool:
    """Return whether a value names layers as LoRA takes them: all-linear, or a list of names."""
    return value == "all-linear" if isinstance(value, str) else len(value) > 0 and are_texts(value)


def are_texts(value: ListConfig) -> bool:
    """Return whether a list holds texts alone, none of them empty."""
    return all(isinstance(text, str) and text for text in value)


def is_date(value: str) -> bool:
    """Return whether a text is a day in the form 2024-07-26."""
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


NOT_NEGATIVE = number(lambda v: v >= 0, "a number >= 0")
POSITIVE = number(lambda v: v > 0, "a number > 0")
LORA = {"r", "alpha", "target_modules"}
RHO = "a number gamma in (0, 1] for gamma^length, policy, or null for the length-normalised form"
RULES: dict[str, Rule] = {
    "seed": at_least(0),
    "resume": (
        str,
        lambda v: v in RESUME_KEYWORDS or Path(v).is_dir(),
        "auto, never, must, or a run folder or checkpoint",
    ),
    "jobs": (int, lambda v: v == -1 or v >= 1, "an integer >= 1, or -1 for all cores"),
    "check_golds": (bool, lambda v: True, "true or false"),
    "profile": (bool, lambda v: True, "true or false"),
    "trainer.max_steps": at_least(1),
    "trainer.rollouts.num_prompts_per_rollout": at_least(1),
    "trainer.num_prompts_per_step": at_least(1),
    "trainer.rollouts.num_generations": (
        int,
        lambda v: v >= 2,
        "an integer >= 2: an advantage compares an answer with its group",
    ),
    "trainer.rollouts.max_completion_length": at_least(1),
    "trainer.rollouts.temperature": POSITIVE,
    "trainer.rollouts.top_p": number(
        lambda v: v == 1, "1: below it the sampled log-probabilities would not be the policy's"
    ),
    "trainer.rollouts.truncated": one_of("grade", "mask"),
    "trainer.rollouts.old_logprobs": one_of("sampler", "trainer", "current"),
    "trainer.rollouts.confidence": one_of("sampler", "trainer"),
    "trainer.rollouts.importance_sampling": one_of(*get_args(ImportanceSampling)),
    "trainer.rollouts.importance_cap": number(lambda v: v > 1, "a number > 1"),
    "trainer.memory.autocast": one_of("auto", "bfloat16"),
    "loss.epsilon_low": number(lambda v: 0 < v < 1, "a number between 0 and 1"),
    "loss.epsilon_high": POSITIVE,
    "loss.dual_clip": number(lambda v: v > 1, "a number > 1, or null for none"),
    "loss.ratio_min": number(lambda v: 0 <= v <= 1, "a number in [0, 1], or null for none"),
    "loss.ratio_max": number(lambda v: v >= 1, "a number >= 1"),
    "loss.log_epsilon_low": POSITIVE,
    "loss.log_epsilon_high": POSITIVE,
    "loss.tau_positive": POSITIVE,
    "loss.tau_negative": POSITIVE,
    "loss.loss_agg_mode": one_of(*get_args(LossAggMode)),
    "loss.beta": NOT_NEGATIVE,
    "loss.entropy_coef": NOT_NEGATIVE,
    "optimizer.learning_rate": NOT_NEGATIVE,
    "optimizer.adam_eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.max_grad_norm": POSITIVE,
    "optimizer.lr_scheduler": one_of(*(kind.value for kind in SchedulerType)),
    "optimizer.warmup_steps": at_least(0),
    "trainer.memory.max_tokens_per_microbatch": at_least(1),
    "trainer.memory.logits_chunk_size": at_least(1),
    "trainer.memory.gradient_checkpointing": (bool, lambda v: True, "true or false"),
    "trainer.memory.torch_compile": (bool, lambda v: True, "true or false"),
    "trainer.memory.data_parallel_shard_degree": at_least(1),
    "trainer.grad_share_every": at_least(0),
    "trainer.negative_answers": at_least(1),
    "trainer.negative_answers_by": one_of("size", "answer"),
    "trainer.checkpoints.checkpoint_every": at_least(1),
    "trainer.checkpoints.keep_checkpoints": at_least(1),
    "trainer.checkpoints.keep_best": (
        str,
        lambda v: re.fullmatch(r"pass@\d+", v),
        "pass@1, pass@2, pass@4, ..., or null",
    ),
    "trainer.non_finite": one_of("stop", "skip"),
    "trainer.max_entropy": number(lambda v: v > 0, "a number > 0 (nats), or null for no limit"),
    "trainer.rollouts.rollouts_every": at_least(0),
    "trainer.memory.num_threads": at_least(1),
    "grader.unjudgeable": one_of(*get_args(Unjudgeable)),
    "grader.correct_from": number(lambda v: 0 < v <= 1, "a number in (0, 1]"),
    "grader.reward": one_of(*get_args(Reward)),
    "evaluation.every": at_least(0),
    "evaluation.num_samples": at_least(1),
    "evaluation.temperature": NOT_NEGATIVE,
    "evaluation.top_p": number(lambda v: 0 < v <= 1, "a number in (0, 1]"),
    "evaluation.max_completion_length": at_least(1),
    "evaluation.by_level": (bool, lambda v: True, "true or false"),
    "objective.alpha": number(lambda v: v >= 0, "a number >= 0: negative groups are never rewarded for confidence"),
    "objective.eps": POSITIVE,
    "objective.groups": one_of("all", "mixed", "negative"),
    "objective.difficulty": one_of("length_normalized", "sequence"),
    "objective.scale_mixed": number(lambda v: v > 0, "a number > 0, or null for 1/G"),
    "objective.scale_negative": number(lambda v: v > 0, "a number > 0, or null for 1/G"),
    "objective.rho": ((str, *NUMBER), lambda v: v == "policy" if isinstance(v, str) else 0 < v <= 1, RHO),
    "objective.scale_by_std": (bool, lambda v: True, "true or false"),
    "sampler.max_num_seqs": at_least(1),
    "sampler.dtype": one_of("auto", "float32", "bfloat16", "float16"),
    "sampler.max_model_len": at_least(2),
    "sampler.kv_cache_space": POSITIVE,
    "sampler.gpu_memory_utilization": number(lambda v: 0 < v <= 1, "a share of the GPU's memory in (0, 1]"),
    "sampler.tensor_parallel_size": at_least(1),
    "sampler.enforce_eager": (bool, lambda v: True, "true or false"),
    "sampler.sleep": (bool, lambda v: True, "true or false"),
    "sampler.parity_every": at_least(0),
    "sampler.max_logp_difference": POSITIVE,
    "sampler.max_mean_logp_difference": POSITIVE,
    "part": one_of("sampling", "step", "update", "scaling", "objective", "memory", "plan"),
    "rounds": at_least(1),
    "warmup": at_least(0),
    "peak_size": at_least(1),
    "naive.sequences": at_least(1),
    "made_up.shortest_share": number(lambda v: 0 < v <= 1, "a share in (0, 1]"),
    "made_up.prompt_length": at_least(1),
    "made_up.silent_share": number(lambda v: 0 <= v <= 1, "a share in [0, 1]"),
    "memory.num_layers": at_least(1),
    "memory.hidden_size": at_least(1),
    "memory.vocab_size": at_least(1),
    "scaling.sampled": (bool, lambda v: True, "true or false"),
    "trl.per_device_train_batch_size": at_least(1),
    "trl.gradient_checkpointing": (bool, lambda v: True, "true or false"),
    "model.attention": one_of("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"),
    "model.stop": (ListConfig, are_texts, r'a list of texts, such as ["\n\n"]'),
    "model.lora": (
        DictConfig,
        lambda v: set(v) == LORA,
        f"null, or a section with {', '.join(sorted(LORA))}: model/lora=default",
    ),
    "model.lora.r": at_least(1),
    "model.lora.alpha": POSITIVE,
    "model.lora.target_modules": ((str, ListConfig), are_layers, "all-linear, or a list of names of layers"),
    "model.prompt.template": one_of("chat", "plain"),
    "model.prompt.max_length": at_least(1),
    "model.prompt.date": (str, is_date, "a date such as 2024-07-26"),
}
NULLABLE = {
    *("trainer.memory.autocast", "trainer.memory.num_threads", "trainer.checkpoints.keep_best", "trainer.max_entropy"),
    *("trainer.negative_answers", "trainer.memory.data_parallel_shard_degree"),
    *("loss.dual_clip", "loss.ratio_min"),
    *("objective.scale_mixed", "objective.scale_negative", "objective.rho"),
    *("simulate", "measured"),
    *("sampler.max_model_len", "sampler.kv_cache_space", "model.attention", "model.lora", "model.prompt.date"),
}


def check_values(config: DictConfig, rules: Mapping[str, Rule] = RULES) -> None:
    """Check every key of the config that has a rule.

    Raises:
        ConfigError: a key of version 0.1, or the first value that breaks its rule.
    """
    absent = object()
    for old, new in MOVED_KEYS.items():
        if (value := OmegaConf.select(config, old, default=absent)) is not absent:
            raise ConfigError(old, value, f"since version 0.2 it is {new}")
    for key, (kind, holds, valid) in rules.items():
        value = OmegaConf.select(config, key, default=absent)
        if value is absent or (value is None and key in NULLABLE):
            continue
        right_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not (right_kind and holds(value)):
            or_null = ", or null" if key in NULLABLE and "null" not in valid else ""
            raise ConfigError(key, value, f"must be {valid}{or_null}")


def check_shard_degree(config: DictConfig, num_processes: int) -> None:
    """Refuse shards of which the processes do not form a whole number of copies of the model.

    Raises:
        ConfigError: trainer.memory.data_parallel_shard_degree does not divide the number of processes.
    """
    degree = config.trainer.memory.data_parallel_shard_degree
    if degree is not None and num_processes % degree:
        valid = f"must be null, or a divisor of {num_processes}, the number of processes"
        raise ConfigError("trainer.memory.data_parallel_shard_degree", degree, valid)


def check_training(config: DictConfig, num_processes: int = 1) -> None:
    """Check the rules between the keys of a training run, and the number of processes that share it.

    Raises:
        ConfigError: a combination that cannot work; the message has the numbers.
    """
    trainer, rollouts, memory = config.trainer, config.trainer.rollouts, config.trainer.memory
    if config.model.dtype == "auto":
        valid = "must be float32, bfloat16 or float64: trained weights have one type on every machine, and "
        raise ConfigError("model.dtype", "auto", valid + "trainer.memory.autocast=auto chooses that of the products")
    if rollouts.num_prompts_per_rollout % trainer.num_prompts_per_step:
        valid = f"must be a divisor of trainer.rollouts.num_prompts_per_rollout={rollouts.num_prompts_per_rollout}"
        raise ConfigError("trainer.num_prompts_per_step", trainer.num_prompts_per_step, valid)
    if trainer.num_prompts_per_step % num_processes:
        valid = f"must be a multiple of {num_processes}, the number of processes"
        raise ConfigError("trainer.num_prompts_per_step", trainer.num_prompts_per_step, valid)
    longest = config.model.prompt.max_length + rollouts.max_completion_length
    if memory.max_tokens_per_microbatch < longest:
        valid = (
            f"must be at least {longest}, one prompt and answer of the largest size "
            f"(model.prompt.max_length + trainer.rollouts.max_completion_length)"
        )
        raise ConfigError("trainer.memory.max_tokens_per_microbatch", memory.max_tokens_per_microbatch, valid)
    if (keep := trainer.negative_answers) is not None and keep > rollouts.num_generations:
        valid = f"must be at most {rollouts.num_generations}, the answers of a group, or null"
        raise ConfigError("trainer.negative_answers", keep, valid)
    difficulty = OmegaConf.select(config, "objective.difficulty", default="length_normalized")
    if OmegaConf.select(config, "objective.rho") is not None and difficulty != "length_normalized":
        reason = f"objective.rho={config.objective.rho} says what the difficulty is estimated from"
        raise ConfigError("objective.difficulty", difficulty, f"must be length_normalized, as {reason}")
    if rollouts.old_logprobs == "current" and trainer.num_prompts_per_step != rollouts.num_prompts_per_rollout:
        valid = (
            f"must be trainer or sampler, as a round of {rollouts.num_prompts_per_rollout} questions is several "
            f"updates of {trainer.num_prompts_per_step}"
        )
        raise ConfigError("trainer.rollouts.old_logprobs", "current", valid)
    if rollouts.importance_sampling != "none" and rollouts.old_logprobs != "trainer":
        valid = "must be none unless trainer.rollouts.old_logprobs=trainer: weights are ratios of those to the engine's"
        raise ConfigError("trainer.rollouts.importance_sampling", rollouts.importance_sampling, valid)
    keep_best, measured = trainer.checkpoints.keep_best, [f"pass@{k}" for k in ks_up_to(config.evaluation.num_samples)]
    if keep_best is not None and keep_best not in measured:
        valid = (
            f"must be one of {', '.join(measured)}, as evaluation.num_samples={config.evaluation.num_samples}, or null"
        )
        raise ConfigError("trainer.checkpoints.keep_best", keep_best, valid)
    betas = list(config.optimizer.adam_betas)
    if len(betas) != 2 or not all(isinstance(b, NUMBER) and 0 <= b < 1 for b in betas):
        raise ConfigError("optimizer.adam_betas", betas, "must be two numbers in [0, 1)")


def check_writable(key: str, folder: Path) -> None:
    """Make the folder, and raise ConfigError if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(key, str(folder), f"must be a folder that can be written to ({error.strerror})") from error
