"""Counts the bytes that a GPU exchanges with the others in a step, and the seconds that links take for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from omegaconf import OmegaConf

from lens.planning.forecast import GIB, Plan

GB = 1e9


@dataclass(frozen=True)
class Exchange:
    """One kind of exchange in a step.

    Attributes:
        what: its name.
        bytes: what a GPU receives for it in a step.
        group: how many neighbouring GPUs exchange, or None where each of them exchanges with its replicas.
    """

    what: str
    bytes: float
    group: int | None


@dataclass(frozen=True)
class Communication:
    """The exchanges of a plan's step, if so many GPUs share a copy of the model.

    A ring of n GPUs gives each (n - 1) / n of what is gathered, as much of what is summed up and scattered, and twice
    that of what all get the sum of.

    Attributes:
        plan: the plan.
        shards: GPUs that share a copy of the model; the others have replicas.
    """

    plan: Plan
    shards: int

    @property
    def replicas(self) -> int:
        return self.plan.config.num_gpus // self.shards

    @property
    def microbatches(self) -> int:
        """Return the micro-batches of a GPU in an update, at the mean lengths."""
        config = self.plan.config
        answers = config.trainer.num_prompts_per_step * config.trainer.rollouts.num_generations * config.trained_share
        return self._split(answers)

    @property
    def passes(self) -> float:
        """Return the micro-batches of a GPU without a backward pass, for each update of a round."""
        return self.plan.rating_passes * self._split(self.plan.answers_a_round) / self.plan.updates_a_round

    def _split(self, answers: float) -> int:
        config = self.plan.config
        tokens = answers * (self.plan.mean_prompt + self.plan.tokens_an_answer)
        return math.ceil(tokens / config.trainer.memory.max_tokens_per_microbatch / config.num_gpus)

    def exchanges(self) -> list[Exchange]:
        """Return what is exchanged in a step.

        The layers are gathered for each pass and again for its backward pass, in the type of the computation; the
        embeddings and the head once, in that of the weights. Gradients are summed in float32 or wider after each
        micro-batch. After a round the engine gets all weights.
        """
        plan, model = self.plan, self.plan.model
        ring, between = (self.shards - 1) / self.shards, (self.replicas - 1) / self.replicas
        layers = model.layer * model.layers
        rest = model.parameters - layers
        once = self.microbatches + self.passes
        narrow = plan.weight_bytes if plan.config.trainer.memory.torch_compile else plan.compute_bytes
        gathered = (once + self.microbatches) * layers * narrow + once * rest * plan.weight_bytes
        gradients = self.microbatches * model.trained * plan.kept_bytes
        synced = model.parameters * plan.weight_bytes / plan.updates_a_round
        return [
            Exchange("weights, gathered to compute", ring * gathered, self.shards),
            Exchange("gradients, summed and scattered", ring * gradients, self.shards),
            Exchange("gradients, summed over replicas", 2 * between * gradients / self.shards, None),
            Exchange("weights, gathered for the engine", ring * synced, self.shards),
        ]

    def seconds(self, exchange: Exchange) -> float:
        """Return the seconds that an exchange takes, if nothing else runs on its link."""
        config = self.plan.config
        inside = exchange.group is not None and exchange.group <= config.gpus_per_node
        inside |= config.num_gpus <= config.gpus_per_node
        return exchange.bytes / GB / (config.node_link_gbs if inside else config.link_gbs)

    def total_seconds(self) -> float:
        """Return the seconds of all exchanges of a step."""
        return sum(map(self.seconds, self.exchanges()))


def advise_on_replicas(plan: Plan) -> str:
    """Return a sentence that says whether shards within a node and replicas between nodes would take less time."""
    config, key = plan.config, "trainer.memory.data_parallel_shard_degree"
    now = Communication(plan, plan.shards).total_seconds()
    if config.num_gpus <= config.gpus_per_node:
        return f"All GPUs are in one node: {key} would only take memory."
    if config.num_gpus % config.gpus_per_node:
        return f"{config.num_gpus} GPUs fill no whole number of nodes of {config.gpus_per_node}: no replicas by node."
    if plan.shards == config.gpus_per_node:
        other, name = Communication(plan, config.num_gpus), f"{key}=null"
    else:
        other, name = Communication(plan, config.gpus_per_node), f"{key}={config.gpus_per_node}"
    then = other.total_seconds()
    changed = OmegaConf.merge(config, {"trainer": {"memory": {"data_parallel_shard_degree": other.shards}}})
    needed = replace(plan, config=changed).memory_needed()
    verdict = "pays" if then < now and needed <= plan.usable else "does not pay"
    room = "" if needed <= plan.usable else f"; its update needs {needed / GIB:.1f} GiB a GPU"
    return f"{name} {verdict}: {then:.2f} s of exchanges a step, and {now:.2f} s as it is{room}."
