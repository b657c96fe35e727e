"""Estimates what a run takes: batches, memory of a GPU, tokens and GPU-hours, from its config and its architecture.

Memory is estimated for the two phases that a GPU alternates between, sampling and update. Hours are a roofline:
floating-point operations for log-probabilities and updates, and memory traffic for decoding, each at the share of the
peak that the config assumes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lens.config.callables import check_objective
from lens.config.checks import check_shard_degree, check_training, check_values
from lens.errors import ConfigError
from lens.models.loading import DTYPES
from lens.models.precision import resolve_autocast
from lens.objectives.inputs import find_inputs
from lens.planning.activations import count_working_memory
from lens.planning.architecture import Architecture, architecture_of
from lens.planning.counting import num_problems
from lens.planning.rules import RULES

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Computes the numbers of a run's plan; every number of the printed tables is a property or a method.

    Attributes:
        config: the composed config.
        model: the architecture of its model.
        problems: number of training problems, at most.
        evaluated: number of problems in an evaluation, at most.
        asked: what the objective asks for (lens/objectives/inputs.py).
    """

    config: DictConfig
    model: Architecture
    problems: int
    evaluated: int
    asked: frozenset[str] = frozenset()

    @property
    def answers_a_round(self) -> int:
        return self.config.trainer.rollouts.num_prompts_per_rollout * self.config.trainer.rollouts.num_generations

    @property
    def updates_a_round(self) -> int:
        return self.config.trainer.rollouts.num_prompts_per_rollout // self.config.trainer.num_prompts_per_step

    @property
    def rounds(self) -> int:
        return math.ceil(self.config.trainer.max_steps / self.updates_a_round)

    @property
    def steps_an_epoch(self) -> int:
        return self.problems // self.config.trainer.rollouts.num_prompts_per_rollout * self.updates_a_round

    @property
    def evaluations(self) -> int:
        """Return the number of evaluations: before the first update, every evaluation.every updates, after the last."""
        every, steps = self.config.evaluation.every, self.config.trainer.max_steps
        return 2 + ((steps - 1) // every if every else 0)

    @property
    def answers_evaluated(self) -> int:
        return self.evaluations * self.evaluated * self.config.evaluation.num_samples

    # --- memory of a GPU, in bytes -------------------------------------------------------------------------------

    @property
    def separate_engine(self) -> bool:
        """Return whether the engine has its own weights, as vLLM does, or samples with the policy's module."""
        return "dtype" in self.config.sampler

    @property
    def has_reference(self) -> bool:
        """Return whether the model that training starts with is kept, for a KL term or for the objective."""
        return self.config.loss.beta > 0 or "reference_logprobs" in self.asked

    @property
    def weight_bytes(self) -> int:
        return DTYPES[self.config.model.dtype].itemsize

    @property
    def kept_bytes(self) -> int:
        """Return the bytes of a number that the optimizer keeps, and of a gradient: in float32 or wider."""
        return max(self.weight_bytes, torch.float32.itemsize)

    @property
    def compute_bytes(self) -> int:
        """Return the bytes of a number in matrix products; GPUs multiply bfloat16."""
        dtype = self.config.model.dtype
        return DTYPES[resolve_autocast(self.config.trainer.memory.autocast, dtype, True) or dtype].itemsize

    @property
    def engine_bytes(self) -> int:
        return getattr(torch, self.config.sampler.dtype).itemsize if self.separate_engine else self.weight_bytes

    @property
    def longest(self) -> int:
        """Return the number of tokens of the longest prompt and the longest answer."""
        return self.config.model.prompt.max_length + self.config.trainer.rollouts.max_completion_length

    @property
    def cache_a_sequence(self) -> int:
        """Return the bytes of the keys and values of the longest sequence."""
        return 2 * self.model.layers * self.model.kv_width * self.engine_bytes * self.longest

    @property
    def shards(self) -> int:
        """Return how many GPUs share a copy of the model."""
        return self.config.trainer.memory.data_parallel_shard_degree or self.config.num_gpus

    def states(self) -> dict[str, float]:
        """Return what takes memory in both phases, in bytes."""
        shard = self.model.parameters * self.weight_bytes / self.shards
        trained = self.model.trained / self.shards
        states = {"weights": shard, "optimizer state (AdamW)": 2 * trained * self.kept_bytes}
        if self.kept_bytes > self.weight_bytes:
            states["master weights (float32)"] = trained * self.kept_bytes
        if self.model.adapters:
            states["adapters"] = trained * self.weight_bytes
        if self.has_reference:
            states["reference model"] = shard
        return states

    def sampling(self) -> dict[str, float]:
        """Return what sampling adds besides the cache, in bytes: the engine's own weights, or the gathered policy's."""
        if self.separate_engine:
            engine = self.model.parameters * self.engine_bytes / self.config.sampler.tensor_parallel_size
            return {"engine's weights": engine}
        gathered = self.model.parameters * self.weight_bytes if self.shards > 1 else 0
        return {"engine's weights": gathered}

    def update(self) -> dict[str, float]:
        """Return what the update adds, in bytes."""
        model, weight, sharded = self.model, self.weight_bytes, self.shards > 1
        copies = 1 if model.adapters else 2  # a frozen block has no gradient
        block = model.parameters - (model.layers - 1) * model.layer  # all but the layers whose turn it is not
        gathered = copies * block * weight if sharded else 0
        types = {"weight_bytes": weight, "compute_bytes": self.compute_bytes}
        needs = {
            "gradients": model.trained * self.kept_bytes / self.shards,
            "embeddings, head and a layer, gathered, with gradients": gathered,
            **count_working_memory(model, self.config.trainer.memory, sharded=sharded, **types),
        }
        if self.separate_engine and not self.config.sampler.sleep:
            needs["engine's weights and cache, which do not sleep"] = self.engine_share
        return needs

    @property
    def engine_share(self) -> float:
        return self.config.sampler.gpu_memory_utilization * self.config.gpu_memory_gib * GIB

    @property
    def usable(self) -> float:
        return self.config.usable_memory * self.config.gpu_memory_gib * GIB

    def memory_needed(self) -> float:
        """Return the bytes of a GPU's memory that the update needs."""
        return sum(self.states().values()) + sum(self.update().values())

    @property
    def room_for_cache(self) -> float:
        """Return the bytes left for keys and values while sampling."""
        left = self.usable - sum(self.states().values()) - sum(self.sampling().values())
        return min(left, self.engine_share - sum(self.sampling().values())) if self.separate_engine else left

    @property
    def sequences_wanted(self) -> int:
        """Return how many sequences a GPU would decode at once if memory allowed."""
        return min(self.config.sampler.max_num_seqs, math.ceil(self.answers_a_round / self.config.num_gpus))

    def check(self) -> None:
        """Refuse a plan that cannot work.

        Raises:
            ConfigError: the GPUs cannot share the groups evenly, there are too few problems, or there is too little
                memory; the message has the numbers.
        """
        config = self.config
        if config.trainer.num_prompts_per_step % config.num_gpus:
            valid = f"must be a divisor of trainer.num_prompts_per_step={config.trainer.num_prompts_per_step}"
            raise ConfigError("num_gpus", config.num_gpus, f"{valid}, so that each has whole groups")
        if self.problems < config.trainer.rollouts.num_prompts_per_rollout:
            valid = f"must be at most {self.problems}, the training problems there are"
            raise ConfigError(
                "trainer.rollouts.num_prompts_per_rollout", config.trainer.rollouts.num_prompts_per_rollout, valid
            )
        have = f"{self.usable / GIB:.1f} GiB of {config.gpu_memory_gib} can be used"
        check_shard_degree(config, config.num_gpus)
        needed = self.memory_needed()
        if needed > self.usable:
            largest, size = max((self.states() | self.update()).items(), key=lambda item: item[1])
            valid = f"the update needs {needed / GIB:.1f} GiB a GPU, {size / GIB:.1f} of it for {largest}; {have}"
            raise ConfigError("num_gpus", config.num_gpus, valid)
        engine = sum(self.sampling().values())
        cache = self.cache_a_sequence / GIB
        if self.room_for_cache < self.cache_a_sequence:
            fixed = sum(self.states().values()) + engine
            valid = f"sampling needs {fixed / GIB:.1f} GiB a GPU, {engine / GIB:.1f} of it for the engine's weights, "
            valid += f"and {cache:.2f} for the cache of one sequence of {self.longest:,} tokens; "
            if self.separate_engine and self.engine_share < engine + self.cache_a_sequence:
                share = config.sampler.gpu_memory_utilization
                valid += f"the engine may take {self.engine_share / GIB:.1f}"
                raise ConfigError("sampler.gpu_memory_utilization", share, valid)
            raise ConfigError("num_gpus", config.num_gpus, valid + have)
        fit = int(self.room_for_cache // self.cache_a_sequence)
        if not self.separate_engine and fit < self.sequences_wanted:
            valid = f"must be at most {fit}: each of {self.sequences_wanted} sequences takes {cache:.2f} GiB of cache "
            valid += f"at its longest, and {self.room_for_cache / GIB:.1f} are left"
            raise ConfigError("sampler.max_num_seqs", config.sampler.max_num_seqs, valid)

    # --- tokens and hours ----------------------------------------------------------------------------------------

    @property
    def tokens_an_answer(self) -> int:
        return min(self.config.mean_completion_length, self.config.trainer.rollouts.max_completion_length)

    @property
    def mean_prompt(self) -> int:
        return min(self.config.mean_prompt_length, self.config.model.prompt.max_length)

    @property
    def rating_passes(self) -> int:
        """Return how often each sampled answer passes through the model, or its reference, without a gradient."""
        rollouts = self.config.trainer.rollouts
        rated = "trainer" in (rollouts.old_logprobs, rollouts.confidence) or "entropies" in self.asked
        return rated + self.has_reference

    def update_flops(self, tokens: float) -> float:
        """Return the FLOPs of updates on so many tokens, prompts included, in sequences of the mean lengths.

        Each of these costs as much as a forward pass: the forward pass itself, the gradients of activations, those of
        weights (not of frozen ones), and the second forward pass of gradient checkpointing.
        """
        passes = 2 + (not self.model.adapters) + self.config.trainer.memory.gradient_checkpointing
        return tokens * passes * self.forward_flops

    @property
    def forward_flops(self) -> float:
        """Return the FLOPs of a forward pass for a token in the middle of a sequence of the mean lengths."""
        return self.model.forward_flops((self.mean_prompt + self.tokens_an_answer) / 2)

    def hours(self) -> dict[str, tuple[float, float]]:
        """Return the tokens and GPU-hours of each part of the run, at the mean lengths."""
        config, prompt, answer = self.config, self.mean_prompt, self.tokens_an_answer
        whole, flop_rate = prompt + answer, config.gpu_tflops * 1e12 * config.training_utilization
        traffic_rate = config.gpu_bandwidth_gbs * 1e9 * config.generation_utilization
        token_cache = self.cache_a_sequence / self.longest
        at_once = min(self.sequences_wanted, int(self.room_for_cache // (token_cache * whole)))
        # Each decoding step reads the weights once and the cache of every running sequence, half full on average.
        read = self.model.parameters * self.engine_bytes + at_once * token_cache * (prompt + answer / 2)
        seconds_a_token = read / at_once / traffic_rate

        sampled = self.rounds * self.answers_a_round
        if config.get("filter_groups") is not None:
            sampled = math.ceil(sampled / config.kept_share)
        answers = config.trainer.num_prompts_per_step * config.trainer.rollouts.num_generations
        trained = config.trainer.max_steps * answers * config.trained_share * whole
        rated = self.rating_passes * sampled * whole
        generated, evaluated = sampled * answer, self.answers_evaluated * answer
        parts = {
            "generation for training": (generated, generated * seconds_a_token),
            "generation for evaluation": (evaluated, evaluated * seconds_a_token),
            "log-probabilities": (rated, rated * self.forward_flops / flop_rate),
            "updates": (trained, self.update_flops(trained) / flop_rate),
        }
        return {name: (tokens, seconds / 3600) for name, (tokens, seconds) in parts.items()}


def make_plan(config: DictConfig) -> Plan:
    """Make the plan of a composed config.

    Raises:
        ConfigError: a value cannot work, or the plan cannot.
    """
    check_values(config)
    check_values(config, RULES)
    check_training(config)
    evaluated = num_problems(config.evaluation.sets)
    objective = instantiate(config.objective)
    check_objective(objective, config.trainer.rollouts.num_generations)
    counts = num_problems(config.dataset), evaluated
    made = Plan(config, architecture_of(config), *counts, find_inputs(objective))
    made.check()
    return made
