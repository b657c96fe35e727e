"""Runs steps and updates of TRL's GRPOTrainer on the same work. Only this module imports trl, and its public interface.

The prompts, the model, the data type, the optimizer, the grader and the rewards are those of `Workload.step`. TRL
samples with transformers' generate, or with vLLM inside the training process. It updates once on each batch, so it
needs no pass for the old log-probabilities. Its update time is the rest of the step: it includes the log-probabilities
and the loss.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lens.benchmarking.arm import Report, Turn
from lens.benchmarking.measuring import count_training_flops
from lens.benchmarking.meter import Meter
from lens.benchmarking.workload import Workload, count_tokens, make_alternating_rewards
from lens.errors import ConfigError
from lens.training.experience import Experience

PEERS = {"trl": "transformers", "trl_vllm": "vllm"}  # arms, and what TRL samples with
# vllm reads these when it is imported: the engine runs in TRL's process, as TRL's "colocate" means, on all threads.
VLLM_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def check_trl(config: DictConfig) -> None:
    """Refuse what TRL cannot do, before anything is measured.

    Raises:
        ConfigError: TRL is not installed, its micro-batches do not divide the step, or the loss is another.
    """
    if config.loss._target_ != "lens.losses.ppo_clip_loss":
        valid = (
            f"must be lens.losses.ppo_clip_loss, which is what TRL computes, unless arms leaves out {', '.join(PEERS)}"
        )
        raise ConfigError("loss._target_", config.loss._target_, valid)
    make_importable(config.trl.path)
    if importlib.util.find_spec("trl") is None:
        valid = "must be a folder with TRL (pip install --no-deps --target FOLDER trl), or install the extra `trl`"
        raise ConfigError("trl.path", config.trl.path, valid)
    sequences = config.trainer.num_prompts_per_step * config.trainer.rollouts.num_generations
    if sequences % config.trl.per_device_train_batch_size:
        valid = f"must be a divisor of {sequences}, trainer.num_prompts_per_step x trainer.rollouts.num_generations"
        raise ConfigError("trl.per_device_train_batch_size", config.trl.per_device_train_batch_size, valid)


def make_importable(folder: str | None) -> None:
    """Append a folder to the module search path; None changes nothing."""
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)


def serve_trl(turn: Turn, report: Report, config: DictConfig, engine: str) -> None:
    """Run TRL's own training loop, which waits for its turn before each step; this is a target of `ArmProcess`."""
    make_importable(config.trl.path)
    if engine == "vllm":
        os.environ |= VLLM_ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": str(config.engines.vllm.kv_cache_space)}
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")  # of other versions, which work too
    from datasets import Dataset
    from transformers import TrainerCallback, TrainerState
    from trl import GRPOConfig, GRPOTrainer

    work, steps = Workload.load(config), config.warmup + config.rounds
    generations = config.trainer.rollouts.num_generations
    seconds, lengths = {"sync": 0.0, "sample": 0.0, "grade": 0.0}, []

    class Turns(TrainerCallback):
        """Waits for the turn before each step, and reports the step after it."""

        def on_train_begin(self, *arguments: Any, **options: Any) -> None:
            report({})

        def on_step_begin(self, args: Any, state: TrainerState, *arguments: Any, **options: Any) -> None:
            self.tokens_before = state.num_input_tokens_seen
            self.number, self.meter = turn(), Meter()
            self.step = self.meter.phase("step")
            self.step.__enter__()

        def on_step_end(self, args: Any, state: TrainerState, *arguments: Any, **options: Any) -> None:
            self.step.__exit__(None, None, None)
            prompts = [len(prompt.token_ids) for prompt in work.batch(self.number).prompts]
            each = [prompt for prompt in prompts for _ in range(generations)]
            if state.num_input_tokens_seen - self.tokens_before != sum(each) + sum(lengths):
                raise RuntimeError("TRL was not given the same prompts")
            passes = ((prompt, [length]) for prompt, length in zip(each, lengths, strict=True))
            update = self.meter.seconds["step"] - sum(seconds.values())
            times = {f"{name}_s": value for name, value in seconds.items()} | {"logprobs_s": 0.0}
            flops = count_training_flops(work.model, passes, body=work.products, head=work.products)
            report(self.meter.row() | times | {"update_s": update} | flops | count_tokens(prompts, lengths))

    with instantiate(config.grader) as grader, tempfile.TemporaryDirectory() as folder:

        def reward(completion_ids: list[list[int]], answer: list[str], **others: Any) -> list[float]:
            lengths[:] = map(len, completion_ids)
            grader.grade(work.tokenizer.batch_decode(completion_ids, skip_special_tokens=True), answer)
            return list(map(float, make_alternating_rewards(len(completion_ids))))

        questions = [pair for number in range(steps) for pair in make_rows(work, config, number)]
        work.model.generate = timed("sample", work.model.generate, seconds)
        trainer = GRPOTrainer(
            work.model,
            reward_funcs=timed("grade", reward, seconds),
            args=GRPOConfig(output_dir=folder, max_steps=steps, **trl_options(config, engine)),
            train_dataset=Dataset.from_list(questions),
            processing_class=work.tokenizer,
            callbacks=[Turns()],
        )
        if engine == "vllm":
            sampler = trainer.vllm_generation
            sampler.sync_weights = timed("sync", sampler.sync_weights, seconds)
            sampler.generate = timed("sample", sampler.generate, seconds)
        trainer.train()


@contextmanager
def open_trl_update(work: Workload) -> Iterator[Callable[[Experience], None]]:
    """Yield a function that writes TRL's gradient of an optimizer batch to the parameters' ``.grad``.

    It is the gradient that TRL's trainer computes: micro-batches that are padded to the batch's longest prompt and
    completion, and TRL's own loss, which computes the head in chunks and entropies besides.
    """
    make_importable(work.config.trl.path)
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            work.model,
            reward_funcs=lambda completion_ids, **others: [0.0] * len(completion_ids),
            args=GRPOConfig(output_dir=folder, max_steps=1, **trl_options(work.config, "transformers")),
            train_dataset=Dataset.from_list(make_rows(work, work.config, 0)),
            processing_class=work.tokenizer,
        )
        size = work.config.trl.per_device_train_batch_size
        if work.config.trl.gradient_checkpointing:  # as the trainer's own loop does before the first step
            work.model.gradient_checkpointing_enable({"use_reentrant": False})

        def write_gradient(experience: Experience) -> None:
            batches = pad_batches(experience, size, work.model.device)
            trainer.current_gradient_accumulation_steps = len(batches)
            work.model.train().zero_grad()
            for inputs in batches:
                trainer.accelerator.backward(trainer.compute_loss(work.model, inputs))
            work.model.eval()

        yield write_gradient


def pad_batches(experience: Experience, size: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Return an optimizer batch on a device as TRL's trainer cuts it up: ``size`` completions in each part.

    Prompts are padded on the left and completions on the right, to the longest of the batch.
    """
    r = experience.rollouts
    prompts = [torch.tensor(prompt.token_ids) for prompt in r.prompts for _ in range(r.num_generations)]
    longest = int(r.lengths.max())
    whole = {
        "prompt_ids": pad_sequence(prompts, batch_first=True, padding_side="left"),
        "prompt_mask": pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"),
        "completion_ids": r.completion_ids[:, :longest],
        "completion_mask": r.mask[:, :longest].long(),
        "advantages": experience.advantages.flatten(),
    }
    count = len(prompts) // size
    parts = [{name: values[i * size : (i + 1) * size] for name, values in whole.items()} for i in range(count)]
    return [{name: values.to(device) for name, values in part.items()} for part in parts]


def timed(name: str, function: Callable[..., Any], seconds: dict[str, float]) -> Callable[..., Any]:
    """Wrap a function so that it has this name, and ``seconds[name]`` is how long its last call took."""

    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **options)
        seconds[name] = time.perf_counter() - started
        return result

    call.__name__ = name
    return call


def trl_options(config: DictConfig, engine: str) -> dict[str, Any]:
    """Return the arguments of TRL's GRPOConfig that make the same step with an engine."""
    rollouts, optimizer = config.trainer.rollouts, config.optimizer
    sequences = config.trainer.num_prompts_per_step * rollouts.num_generations
    return dict(
        per_device_train_batch_size=config.trl.per_device_train_batch_size,
        gradient_accumulation_steps=sequences // config.trl.per_device_train_batch_size,
        gradient_checkpointing=config.trl.gradient_checkpointing,
        num_generations=rollouts.num_generations,
        max_completion_length=rollouts.max_completion_length,
        temperature=rollouts.temperature,
        bf16=config.trainer.memory.autocast == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        beta=config.loss.beta,
        epsilon=config.loss.epsilon_low,
        epsilon_high=config.loss.epsilon_high,
        loss_type="grpo",  # the other types cost the same
        optim="adamw_torch",
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=optimizer.adam_betas[0],
        adam_beta2=optimizer.adam_betas[1],
        adam_epsilon=optimizer.adam_eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        seed=config.seed,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **(vllm_options(config) if engine == "vllm" else {}),
    )


def vllm_options(config: DictConfig) -> dict[str, Any]:
    """Return the arguments of TRL's GRPOConfig for vLLM in the training process.

    The correction for the difference between vLLM's log-probabilities and the trainer's is off, as it is by default in
    lens: it takes a pass over all answers.
    """
    return dict(
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=config.model.prompt.max_length + config.trainer.rollouts.max_completion_length,
        vllm_importance_sampling_correction=False,
    )


def make_rows(work: Workload, config: DictConfig, number: int) -> list[dict[str, Any]]:
    """Return the questions of a round as TRL takes them: messages for the chat template, or text."""
    prompt, rows = config.model.prompt, []
    batch = work.batch(number)
    for problem, answer in zip(batch.problems, batch.answers, strict=True):
        question = problem if prompt.instruction is None else f"{problem}\n{prompt.instruction}"
        if prompt.template == "chat":
            asked = [{"role": "user", "content": question}]
        else:
            asked = prompt.layout.replace("{question}", question)
        rows.append({"prompt": asked, "answer": answer})
    return rows
