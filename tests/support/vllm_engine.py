"""What the tests of vLLM share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lens.sampling.rollouts import Rollouts, Sampler
from lens.training.group_metrics import measure_logp_difference
from tests.support.losses import plain_pass

GENERATIONS, MAX_LENGTH = 4, 14
CHOICES = {
    "max_model_len": 100,
    "dtype": "float32",
    "max_num_seqs": 64,
    "kv_cache_space": 0.25,
    "gpu_memory_utilization": 0.4,
    "tensor_parallel_size": 1,
    "enforce_eager": True,
    "sleep": False,
    "parity_every": 2,
    "max_logp_difference": 1e-3,
    "max_mean_logp_difference": 1e-4,
}
VLLM = ["sampler=vllm", "sampler.kv_cache_space=0.25", "sampler.max_num_seqs=64"]


def make_engine(model: PreTrainedModel, tokenizer: Any, **changes: Any) -> Sampler:
    from lens.sampling.vllm import VLLMSampler

    return VLLMSampler(model, tokenizer, **(CHOICES | changes))


def weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    return model.named_parameters(remove_duplicate=False)


def ratings(model: PreTrainedModel, rollouts: Rollouts) -> Tensor:
    return plain_pass().rate_rollouts(model, rollouts)[0]


def largest_difference(model: PreTrainedModel, rollouts: Rollouts) -> float:
    found = measure_logp_difference(ratings(model, rollouts), rollouts.logprobs, rollouts.mask)
    return found["sampling/logp_difference_max"]


def last_tokens(rollouts: Rollouts) -> list[int]:
    return [int(row[n - 1]) for row, n in zip(rollouts.completion_ids, rollouts.lengths, strict=True)]
