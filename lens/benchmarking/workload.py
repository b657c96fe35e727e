"""Defines the work that is measured: a model, its problems in a fixed order, and one step of lens in phases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.benchmarking.measuring import count_training_flops
from lens.benchmarking.meter import Meter, Row
from lens.commands.assembly import loading_options, longest_sequence, make_sampler, use_threads
from lens.grading.groups import grade_groups
from lens.grading.pool import Grader
from lens.models.allocator import keep_freed_memory
from lens.models.layers import check_layers
from lens.models.loading import load_model
from lens.models.logprobs import ForwardPass
from lens.models.packing import split_into_microbatches
from lens.models.sharding import gather_named_weights
from lens.objectives import grpo_advantages
from lens.problems.prompts import Prompt, PromptFormat, encode_problems
from lens.sampling.rollouts import Rollouts, Sampler
from lens.seeding import derive_seed
from lens.training.experience import Experience, make_experience
from lens.training.policy import make_optimizer
from lens.training.update import Loss, compute_gradient


@dataclass(frozen=True)
class Batch:
    """The questions of one round."""

    problems: Sequence[str]
    prompts: Sequence[Prompt]
    answers: Sequence[str]


@dataclass
class Workload:
    """A policy with its optimizer and questions; the same config gives the same workload in every process."""

    config: DictConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    questions: Batch

    def __post_init__(self):
        self.loss, self.forward_pass = Loss.build(self.config), ForwardPass.build(self.config.trainer)
        self.optimizer = make_optimizer(self.model, self.config.optimizer)

    @property
    def products(self) -> str:
        """Return the data type of the layers' matrix products; the head of lens keeps that of the weights."""
        return self.forward_pass.autocast or self.config.model.dtype

    @property
    def rollouts(self) -> DictConfig:
        """Return the config's trainer.rollouts section."""
        return self.config.trainer.rollouts

    @classmethod
    def load(cls, config: DictConfig) -> Workload:
        """Load the model and the problems of a config; its model.name_or_path must be set.

        Raises:
            ConfigError: there is no such model or there are no such problems, or the layers cannot do what is asked.
        """
        use_threads(config.trainer.memory.num_threads)
        model, tokenizer = load_model(config.model.name_or_path, **loading_options(config))
        check_layers(model, config.trainer.memory)
        problems, _ = instantiate(config.dataset)({})
        problems = problems.shuffle(seed=config.seed)
        count = min(len(problems), 64 + (config.warmup + config.rounds) * config.trainer.num_prompts_per_step)
        problems, prompts, _ = encode_problems(
            problems.select(range(count)), tokenizer, PromptFormat(**config.model.prompt)
        )
        questions = Batch(list(problems["problem"]), prompts, list(problems["answer"]))
        keep_freed_memory()
        return cls(config, model, tokenizer, questions)

    def batch(self, number: int) -> Batch:
        """Return the questions of round ``number``, in the order of the problems; the first follows the last."""
        size, q = self.config.trainer.num_prompts_per_step, self.questions
        chosen = [index % len(q.prompts) for index in range(number * size, (number + 1) * size)]
        return Batch(*([getattr(q, f.name)[index] for index in chosen] for f in fields(Batch)))

    @contextmanager
    def sampler(self, settings: DictConfig) -> Iterator[Sampler]:
        """Yield a rollout engine with the policy's weights, and close it in the end."""
        longest = longest_sequence(self.model, self.questions.prompts, self.rollouts.max_completion_length)
        with make_sampler(settings, self.model, self.tokenizer, longest) as sampler:
            sampler.sync(gather_named_weights(self.model))
            yield sampler

    def sample(self, sampler: Sampler, prompts: Sequence[Prompt], number: int) -> Rollouts:
        """Sample completions of these prompts; the seed depends on ``number``."""
        s = self.rollouts
        return sampler.sample(
            prompts,
            s.num_generations,
            derive_seed(self.config.seed, "round", number),
            max_completion_length=s.max_completion_length,
            temperature=s.temperature,
            top_p=s.top_p,
        )

    def grade(self, grader: Grader, rollouts: Rollouts, answers: Sequence[str]) -> list[str]:
        """Return the verdicts on all completions."""
        grades = grade_groups(grader, rollouts.texts, answers, rollouts.num_generations)
        return [grade.verdict for grade in grades]

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """Return the policy's own log-probabilities [Q*G, T]."""
        return self.forward_pass.rate_rollouts(self.model, rollouts)[0]

    def old_logprobs(self, rollouts: Rollouts) -> Tensor | None:
        """Return the policy's log-probabilities if trainer.rollouts.old_logprobs is trainer, else None."""
        return self.logprobs(rollouts) if self.rollouts.old_logprobs == "trainer" else None

    def update(self, gradient: Callable[[], dict[str, float] | None]) -> dict[str, float]:
        """Take one optimizer step: compute the gradient, clip its norm, step AdamW; return what ``gradient`` returns.

        Args:
            gradient: writes the gradient to the parameters' ``.grad`` and may return metrics.
        """
        metrics = gradient()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        return metrics or {}

    def learn(self, experience: Experience, **choices: bool) -> dict[str, float]:
        """Take one optimizer step of lens; ``choices`` replace fields of its forward pass."""
        forward_pass = replace(self.forward_pass, **choices)
        return self.update(lambda: compute_gradient(self.model, experience, self.loss, forward_pass))

    def sequences(self, experience: Experience) -> Iterator[tuple[int, list[int]]]:
        """Yield what an update of lens passes through the model: tokens of a prompt and of each completion with it."""
        r = experience.rollouts
        rows = (experience.advantages.flatten() != 0).nonzero().squeeze(1).tolist()
        for packs in split_into_microbatches(self.model, r, rows, self.forward_pass.max_tokens_per_microbatch):
            for pack in packs:
                yield len(r.prompts[pack[0] // r.num_generations].token_ids), r.lengths[pack].tolist()

    def count_flops(self, experience: Experience) -> Row:
        """Return the counts of `count_training_flops` for an update of lens."""
        types = {"body": self.products, "head": self.config.model.dtype}
        return count_training_flops(self.model, self.sequences(experience), **types)

    def step(self, sampler: Sampler, grader: Grader, number: int) -> dict[str, float]:
        """Take and measure one step of GRPO.

        The answers are graded, but the update then counts every second one as correct.
        """
        meter, batch = Meter(), self.batch(number)
        with meter.phase("sync"):
            sampler.sync(gather_named_weights(self.model))
        with meter.phase("sample"):
            rollouts = self.sample(sampler, batch.prompts, number)
        with meter.phase("grade"):
            self.grade(grader, rollouts, batch.answers)
        with meter.phase("logprobs"):
            recomputed = self.old_logprobs(rollouts)
        experience = make_every_answer_teach(rollouts, self.rollouts.old_logprobs, recomputed)
        with meter.phase("update"):
            self.learn(experience)
        tokens = count_tokens([len(prompt.token_ids) for prompt in batch.prompts], rollouts.lengths.tolist())
        return meter.row() | tokens | self.count_flops(experience) | {"step_s": sum(meter.seconds.values())}


def count_tokens(prompts: Sequence[int], completions: Sequence[int]) -> dict[str, int]:
    """Return the token counts of a step's row: those of its distinct prompts, and of its completions."""
    return {"prompt_tokens": sum(prompts), "completion_tokens": sum(completions)}


def make_alternating_rewards(number: int) -> list[int]:
    """Return reward 1 for every second answer: every group is mixed, and no completion has an advantage of 0."""
    return [place % 2 for place in range(number)]


def make_every_answer_teach(
    rollouts: Rollouts, old_from: str = "sampler", trainer_logprobs: Tensor | None = None
) -> Experience:
    """Weigh rollouts with GRPO and `make_alternating_rewards`."""
    verdicts = ["correct" if reward else "incorrect" for reward in make_alternating_rewards(len(rollouts.lengths))]
    return make_experience(
        rollouts,
        [None] * len(rollouts.prompts),
        verdicts,
        grpo_advantages,
        trainer_logprobs=trainer_logprobs,
        old_from=old_from,
    )


def make_up_rollouts(work: Workload, *, shortest_share: float = 1.0, num_prompts: int | None = None) -> Rollouts:
    """Return rollouts of random tokens; the cost of an update does not depend on which tokens there are.

    Lengths are spread evenly from shortest_share x max_completion_length up to max_completion_length, and shuffled.
    The log-probabilities are the policy's own.
    """
    s, vocabulary = work.rollouts, work.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(derive_seed(work.config.seed, "made up"))
    prompts = work.batch(0).prompts[:num_prompts]
    count, longest = len(prompts) * s.num_generations, s.max_completion_length
    lengths = torch.linspace(max(1, round(shortest_share * longest)), longest, count).round().long()
    lengths = lengths[torch.randperm(count, generator=generator)]
    ids = torch.randint(vocabulary, (count, longest), generator=generator)
    rollouts = Rollouts(
        prompts=prompts,
        num_generations=s.num_generations,
        completion_ids=ids * (torch.arange(longest) < lengths[:, None]),
        logprobs=torch.zeros(count, longest),
        lengths=lengths,
        finish_reasons=["length"] * count,
        texts=[""] * count,
    )
    return replace(rollouts, logprobs=work.logprobs(rollouts))
