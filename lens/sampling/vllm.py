"""Runs vLLM as the rollout engine, inside the training process. This is the only module that imports vllm."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.distributed.collectives import world_size
from lens.errors import ConfigError
from lens.problems.prompts import Prompt
from lens.progress import progress_bar
from lens.sampling.rollouts import Rollouts, end_token_ids
from lens.seeding import derive_seed, keeping_random_states

# vllm reads these when it is imported. The engine runs in this process, so weights reach it in memory, not by file.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer uses the same threads
os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # its warnings on every start are about speed on other machines
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # vllm imports a client library that W&B would advertise Weave for
logging.getLogger("vllm").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
try:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
except ImportError as error:
    valid = f"must be transformers, unless vLLM is installed: make setup VLLM=cpu, or VLLM=gpu ({error})"
    raise ConfigError("sampler", "vllm", valid) from error

log = logging.getLogger(__name__)

GIB = 2**30
MEMORY = ("weights", "kv_cache")  # vLLM's names of the memory that it can give back, in the order of need
SMALL = 1e7  # parameters; measured on a CPU: vLLM takes twice as long with half a million, a quarter with 135 million
SEED_BITS = 62  # leaves room for the sample's number, which vLLM adds to a request's seed


class VLLMSampler:
    """Samples with vLLM's paged attention and continuous batching. All samples of a question are one request.

    The engine starts with random weights and gets the policy's with the first `sync`. Prompts are computed whole: if a
    seeded request's prompt came in pieces, vLLM would have to rewind its random numbers, which it cannot do on a CPU.

    Args:
        model: the policy; only its folder and its end tokens are used.
        tokenizer: its tokenizer.
        max_model_len: most tokens that a prompt and its answer may have together.
        dtype, max_num_seqs, kv_cache_space, gpu_memory_utilization, tensor_parallel_size, enforce_eager, sleep,
        parity_every, max_logp_difference, max_mean_logp_difference: configs/sampler/vllm.yaml explains each.

    Raises:
        ConfigError: a value cannot work here, vLLM does not support the model, or there is too little memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_model_len: int,
        dtype: str,
        max_num_seqs: int,
        kv_cache_space: float | None,
        gpu_memory_utilization: float,
        tensor_parallel_size: int,
        enforce_eager: bool,
        sleep: bool,
        parity_every: int,
        max_logp_difference: float,
        max_mean_logp_difference: float,
    ):
        on_gpu = torch.cuda.is_available()
        if not on_gpu and (parameters := model.num_parameters()) < SMALL:
            log.warning(
                "sampler=vllm: on a CPU it does not pay for a model of %.1f million parameters; sampler=transformers "
                "takes about half the time for a token, and starts at once",
                parameters / 1e6,
            )
        if sleep and not on_gpu:
            raise ConfigError("sampler.sleep", sleep, "must be false on a CPU: vLLM's CPU build has no sleep mode")
        if kv_cache_space is None and not on_gpu:
            raise ConfigError("sampler.kv_cache_space", None, "must be a number of GiB on a CPU")
        if world_size() % tensor_parallel_size:
            valid = f"must be a divisor of the {world_size()} processes"
            raise ConfigError("sampler.tensor_parallel_size", tensor_parallel_size, valid)
        self.tokenizer, self.sleep, self.asleep = tokenizer, sleep, set()
        self.parity_every, self.max_logp_difference = parity_every, max_logp_difference
        self.max_mean_logp_difference = max_mean_logp_difference
        self.end_tokens = end_token_ids(model, tokenizer)
        try:
            self.llm = LLM(
                model.name_or_path,
                load_format="dummy",
                trust_remote_code=False,
                skip_tokenizer_init=True,
                generation_config="vllm",
                dtype=dtype,
                seed=0,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max(max_model_len, 8192),
                enable_chunked_prefill=False,
                kv_cache_memory_bytes=None if kv_cache_space is None else int(kv_cache_space * GIB),
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel_size=tensor_parallel_size,
                distributed_executor_backend="external_launcher" if world_size() > 1 else "uni",
                enforce_eager=enforce_eager,
                enable_sleep_mode=sleep,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
            )
        except (ValueError, RuntimeError) as error:
            raise explain_failure(error, model, kv_cache_space, tensor_parallel_size) from error

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        seed: int,
        *,
        max_completion_length: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        progress: str | None = None,
    ) -> Rollouts:
        """See `lens.sampling.rollouts.Sampler`; temperature 0 is greedy."""
        self._wake(*MEMORY)
        requests = [
            SamplingParams(
                n=num_generations,
                seed=derive_seed(seed, prompt.problem_id) % 2**SEED_BITS,
                max_tokens=max_completion_length,
                temperature=temperature,
                top_p=top_p,
                stop_token_ids=self.end_tokens,
                logprobs=0,
                detokenize=False,
            )
            for prompt in prompts
        ]
        # vLLM also draws from torch's global generator: how much depends on this process's share, and on probes.
        with keeping_random_states():
            outputs = self.llm.generate(
                [TokensPrompt(prompt_token_ids=list(prompt.token_ids)) for prompt in prompts],
                requests,
                use_tqdm=progress is not None and partial(make_question_bar, title=progress),
            )
        if self.sleep:
            self.llm.sleep(level=1)  # moves weights to the host and drops the cache
            self.asleep = set(MEMORY)
        completions = [completion for output in outputs for completion in output.outputs]
        lengths = torch.tensor([len(completion.token_ids) for completion in completions])
        ids = torch.zeros(len(completions), int(lengths.max()), dtype=torch.long)
        logprobs = torch.zeros(ids.shape)
        for row, completion in enumerate(completions):
            tokens = list(completion.token_ids)
            ids[row, : len(tokens)] = torch.tensor(tokens)
            logprobs[row, : len(tokens)] = torch.tensor(
                [at[token].logprob for at, token in zip(completion.logprobs, tokens, strict=True)]
            )
        return Rollouts(
            prompts=prompts,
            num_generations=num_generations,
            completion_ids=ids,
            logprobs=logprobs,
            lengths=lengths,
            finish_reasons=[completion.finish_reason for completion in completions],
            texts=self.tokenizer.batch_decode(
                [list(completion.token_ids) for completion in completions], skip_special_tokens=True
            ),
        )

    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights by name, one after the other, in memory. Then drop the cache of the old weights."""
        self._wake("weights")
        weights = ((name, tensor.detach()) for name, tensor in named_tensors)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.reset_prefix_cache()

    def _wake(self, *memory: str) -> None:
        """Take back those parts of the GPU's memory that the engine has given up."""
        for part in memory:
            if part in self.asleep:
                self.llm.wake_up(tags=[part])
                self.asleep.remove(part)

    def close(self) -> None:
        """End the engine and free its memory."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def make_question_bar(iterable: Iterable | None = None, *, title: str, total: int | None = None, **_: Any) -> Any:
    """Make the progress bar of a call to vLLM, which asks for two bars.

    The first one wraps the requests that enter the engine (``iterable``). It would be over at once, so it is left out.
    """
    return iterable if iterable is not None else progress_bar(total, unit="question", desc=title, leave=False)


def explain_failure(
    error: Exception, model: PreTrainedModel, kv_cache_space: float | None, tensor_parallel_size: int
) -> ConfigError:
    """Return an error that names the config key because of which the engine did not start."""
    reason = " ".join(str(error).split())
    reason = reason.split("Value error, ")[-1].split(" [type=")[0]  # without pydantic's dump of the whole config
    if "tensor parallel size" in reason:
        return ConfigError("sampler.tensor_parallel_size", tensor_parallel_size, f"must divide the model: {reason}")
    if "cache" in reason.lower():
        return ConfigError(
            "sampler.kv_cache_space", kv_cache_space, f"must leave room for one longest sequence: {reason}"
        )
    return ConfigError("model.name_or_path", model.name_or_path, f"must be a model that vLLM supports: {reason}")
