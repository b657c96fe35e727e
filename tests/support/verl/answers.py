"""Answers as verl holds them, and verl's configs and trainers as tests make them."""

from __future__ import annotations

import numpy as np
import torch
import transfer_queue
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.v1.trainer_base import get_trainer_cls

from lens.integrations import verl as plugin  # noqa: F401 - registers the objectives

GROUPS, SIZE, LONGEST = 6, 4, 5
# The kinds of groups, one a row: negative, negative, mixed, mixed, mixed, positive.
CORRECT = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()


def config(*overrides: str):
    """verl's config, composed by verl's own Hydra files."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", list(overrides))


def trainer(*overrides: str, mode: str = "sync"):
    """A trainer of verl's before it has touched Ray; it warns of nothing but what a test is about."""
    quiet = ("actor_rollout_ref.actor.clip_ratio_c=1e9", "actor_rollout_ref.rollout.n=4")
    if mode == "separate_async":
        quiet += ("actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl")
    return get_trainer_cls(mode)(config(f"trainer.v1.trainer_mode={mode}", *quiet, *overrides))


class Batch:
    """B answers in shuffled order, as verl has them: padded tensors and ids, and the same as [Q, G]."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = GROUPS * SIZE
        self.order = torch.randperm(count, generator=generator)
        self.lengths = torch.randint(1, LONGEST + 1, (count,), generator=generator)
        self.logprobs = -2 * torch.rand(count, LONGEST, generator=generator)
        self.entropies = 3 * torch.rand(count, LONGEST, generator=generator)
        self.mask = torch.arange(LONGEST) < self.lengths[:, None]
        self.uids = np.repeat([f"question-{q}" for q in range(GROUPS)], SIZE).astype(object)
        means = (self.logprobs * self.mask).double().sum(dim=1) / self.lengths
        self.confidence = means.exp().float().view(GROUPS, SIZE)

    def proto(self) -> DataProto:
        """The rows as compute_advantage takes them; the reward lies on the last token."""
        rewards = torch.zeros(self.mask.shape)
        rewards[torch.arange(len(rewards)), self.lengths - 1] = CORRECT.flatten().float()
        tensors = {"token_level_rewards": rewards, "response_mask": self.mask.long()}
        shuffled = {name: values[self.order] for name, values in tensors.items()}
        return DataProto.from_dict(tensors=shuffled, non_tensors={"uid": self.uids[self.order.numpy()]})

    def rows(self, advantages: torch.Tensor) -> torch.Tensor:
        """Advantages [Q, G] or [Q, G, T] as rows [B, T] in this order, 0 outside the mask."""
        flat = advantages.reshape(GROUPS * SIZE, -1)
        return (flat.expand(-1, LONGEST) * self.mask)[self.order]

    def queue(self, monkeypatch, **fields) -> transfer_queue.KVBatchMeta:
        """verl's queue, holding this batch: nested tensors, as its agents put them there. Returns the batch's meta."""
        proto = self.proto()
        lengths = self.lengths[self.order].tolist()
        scores = proto.batch["token_level_rewards"]
        padded = {"response_mask": proto.batch["response_mask"], "rm_scores": scores}
        padded |= {"old_log_probs": self.logprobs[self.order], "entropy": self.entropies[self.order]}
        held = {
            name: torch.nested.nested_tensor([v[:n] for v, n in zip(values, lengths, strict=True)], layout=torch.jagged)
            for name, values in padded.items()
        }
        held["uid"] = proto.non_tensor_batch["uid"].tolist()
        held |= fields
        held = {name: values for name, values in held.items() if values is not None}
        self.written = {}

        def get(keys, partition_id, select_fields):
            return TensorDict({k: held[k] for k in select_fields if k in held}, batch_size=len(keys))

        def put(keys, partition_id, fields):
            self.written = fields

        monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
        monkeypatch.setattr(transfer_queue, "kv_batch_put", put)
        keys = [f"{uid}_{row}_0" for row, uid in enumerate(held["uid"])]
        return transfer_queue.KVBatchMeta(keys=keys, tags=[{} for _ in keys], partition_id="train")
