"""The training loop: sample, grade, weigh, update, and now and then evaluate and save.

A *step* is one optimizer update. A *round* samples num_prompts_per_rollout questions and is split into mini-batches of
num_prompts_per_step, each of which is one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from lens import checkpoints
from lens.errors import StopRequested
from lens.evaluation import Evaluator, metrics_of
from lens.experience import Experience, weigh
from lens.grading import Grader
from lens.policy import recompute
from lens.progress import progress_bar
from lens.prompts import Prompt
from lens.sampling.parity import is_probed, probe
from lens.sampling.rollouts import Rollouts, Sampler, derive_seed
from lens.tracking import Tracker
from lens.update import Loss, compute_gradient


@dataclass
class Position:
    """Where a run stands; with the weights and the optimizer, all that a checkpoint holds."""

    step: int = 0
    round: int = 0
    pending: list[Experience] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=lambda: {"tokens_generated": 0, "tokens_trained": 0})
    evaluation: dict[str, float] = field(default_factory=dict)  # metrics of the last one


@dataclass
class Trainer:
    """One run. Its parts are made elsewhere (lens/runs.py): this class is the algorithm.

    ``settings`` is the config's trainer section; configs/trainer explains each key.
    """

    settings: DictConfig
    loss: Loss
    objective: Callable[..., Tensor]
    model: PreTrainedModel
    reference: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    problems: Dataset
    prompts: Sequence[Prompt]
    sampler: Sampler
    grader: Grader
    evaluator: Evaluator
    evaluate_every: int
    tracker: Tracker
    seed: int
    folder: Path
    stop_requested: Callable[[], bool]
    show_progress: bool
    position: Position = field(default_factory=Position)
    timings: dict[str, float] = field(default_factory=dict)
    synced_at: int | None = None
    syncs: int = 0
    parity: dict[str, float] = field(default_factory=dict)  # what the last probe found

    def __post_init__(self):
        s = self.settings
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            lr=s.learning_rate,
            betas=tuple(s.adam_betas),
            eps=s.adam_eps,
            weight_decay=s.weight_decay,
        )
        self.scheduler = get_scheduler(s.lr_scheduler, self.optimizer, s.warmup_steps, s.max_steps)

    def run(self) -> dict[str, float]:
        """Train to max_steps; returns the metrics of the last evaluation.

        Raises:
            StopRequested: stopped early, after a checkpoint.
            FloatingPointError: the loss or gradient of a step is not finite.
        """
        s, at = self.settings, self.position
        if at.step == 0:
            self._evaluate()
        with progress_bar(s.max_steps, initial=at.step, disable=not self.show_progress) as bar:
            while at.step < s.max_steps:
                started = time.perf_counter()
                if not at.pending:
                    at.pending = self._collect().split(s.num_prompts_per_step)
                batch = at.pending.pop(0)
                metrics = batch.metrics(self.loss.weights(batch)) | self._update(batch)
                at.step += 1
                self._log(metrics, batch, time.perf_counter() - started)
                bar.update()
                bar.set_postfix(reward=f"{metrics['reward']:.2f}", negative=f"{metrics['groups/frac_negative']:.2f}")

                last, stop = at.step == s.max_steps, self.stop_requested()
                if last or (self.evaluate_every and at.step % self.evaluate_every == 0):
                    self._evaluate()
                if last or stop or at.step % s.checkpoint_every == 0:
                    self._save()
                if stop and not last:
                    raise StopRequested(f"at step {at.step} of {s.max_steps}")
        return at.evaluation

    def _collect(self) -> Experience:
        """One round: questions, answers, verdicts, advantages."""
        s, at = self.settings, self.position
        questions = round_of_questions(len(self.problems), s.num_prompts_per_rollout, self.seed, at.round)
        problems = self.problems.select(questions)
        prompts = [self.prompts[index] for index in questions]
        sampler = self._synced_sampler()
        with self._timed("sample"):
            rollouts = sampler.sample(
                prompts,
                s.num_generations,
                derive_seed(self.seed, "round", at.round),
                max_completion_length=s.max_completion_length,
                temperature=s.temperature,
                top_p=s.top_p,
            )
        with self._timed("grade"):
            golds = [gold for gold in problems["answer"] for _ in range(s.num_generations)]
            verdicts = [grade.verdict for grade in self.grader.grade(rollouts.texts, golds)]
        with self._timed("logprobs"):
            recomputed = "trainer" in (s.old_logprobs, s.confidence) or s.importance_sampling != "none"
            logprobs, entropies = self._recompute(self.model, rollouts) if recomputed else (None, None)
            reference = None if self.reference is None else self._recompute(self.reference, rollouts)[0]
        experience = weigh(
            rollouts,
            list(problems["level"]),
            verdicts,
            self.objective,
            trainer_logprobs=logprobs,
            reference_logprobs=reference,
            entropies=entropies,
            old_from=s.old_logprobs,
            confidence_from=s.confidence,
            mask_truncated=s.truncated == "mask",
            importance_sampling=s.importance_sampling,
            importance_cap=s.importance_cap,
        )
        if s.rollouts_every and at.round % s.rollouts_every == 0:
            self.tracker.write_rollouts(at.step + 1, experience.to_frame().assign(answer=golds))
        at.round += 1
        at.totals["tokens_generated"] += int(rollouts.lengths.sum())
        return experience

    def _update(self, batch: Experience) -> dict[str, float]:
        """One optimizer step; a batch without any advantage is a step with a gradient of zero."""
        s, step = self.settings, self.position.step + 1
        with self._timed("update"):
            share = s.grad_share_every > 0 and (step == 1 or step % s.grad_share_every == 0)
            metrics = compute_gradient(self.model, batch, self.loss, share=share)
            grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.max_grad_norm).item()
            if not (abs(metrics["loss"]) < float("inf") and grad_norm < float("inf")):
                raise FloatingPointError(f"step {step}: loss {metrics['loss']}, gradient norm {grad_norm}")
            learning_rate = self.scheduler.get_last_lr()[0]
            self.optimizer.step()
            self.scheduler.step()
        return {**metrics, "grad_norm": grad_norm, "learning_rate": learning_rate}

    def _synced_sampler(self) -> Sampler:
        """The sampler with the current weights."""
        if self.synced_at != self.position.step:
            with self._timed("sync"):
                self.sampler.sync(self.model.named_parameters(remove_duplicate=False))
            self.synced_at, self.syncs = self.position.step, self.syncs + 1
            if self.sampler.parity_every is not None and is_probed(self.syncs, self.sampler.parity_every):
                self.parity = probe(
                    self.sampler,
                    self.prompts,
                    lambda rollouts: self._recompute(self.model, rollouts)[0],
                    temperature=self.loss.temperature,
                )
        return self.sampler

    def _recompute(self, model: PreTrainedModel, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        return recompute(
            model,
            rollouts,
            temperature=self.loss.temperature,
            logits_chunk_size=self.loss.logits_chunk_size,
            max_tokens=self.loss.max_tokens_per_microbatch,
            autocast=self.loss.autocast,
        )

    def _evaluate(self) -> None:
        """Evaluate with the current weights; the step decides the seed, so that objectives meet the same draws."""
        step, sampler = self.position.step, self._synced_sampler()
        with self._timed("evaluate"):
            seed = derive_seed(self.seed, "evaluation", step)
            per_problem, answers = self.evaluator.evaluate(sampler, self.grader, seed, show_progress=self.show_progress)
        metrics = metrics_of(per_problem, by_level=self.evaluator.by_level)
        self.tracker.write_evaluation(step, per_problem, answers)
        self.tracker.log(step, metrics | {"time/evaluate_s": self.timings.pop("evaluate")})
        self.position.evaluation = metrics

    def _log(self, metrics: dict[str, float], batch: Experience, seconds: float) -> None:
        at = self.position
        at.totals["tokens_trained"] += int(metrics["tokens/trained"])
        times = {f"time/{name}_s": self.timings.pop(name) for name in list(self.timings)} | {"time/step_s": seconds}
        tokens = int(batch.rollouts.lengths.sum())
        epoch = at.round * self.settings.num_prompts_per_rollout / len(self.problems)
        totals = {f"total/{name}": value for name, value in at.totals.items()}
        self.tracker.log(
            at.step,
            {"epoch": epoch, **self.parity, **metrics, **totals, **times, "tokens_per_second": tokens / seconds},
        )

    def _save(self) -> None:
        """A checkpoint; only what it holds is given to W&B, so that nothing has to be taken back."""
        at = self.position
        state = {
            "step": at.step,
            "round": at.round,
            "pending": [experience.state() for experience in at.pending],
            "totals": at.totals,
            "evaluation": at.evaluation,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "wandb_run_id": self.tracker.run_id,
        }
        folder = self.folder / "checkpoints"
        checkpoints.save(folder, self.model, self.tokenizer, state, keep=self.settings.keep_checkpoints)
        self.tracker.commit()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state; the weights are those that the model was loaded with."""
        pending = [Experience.from_state(part) for part in state["pending"]]
        self.position = Position(state["step"], state["round"], pending, state["totals"], state["evaluation"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        checkpoints.restore_random_states(state["random"])

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - started


def round_of_questions(num_problems: int, per_round: int, seed: int, number: int) -> list[int]:
    """The problems of round ``number``: each epoch is a permutation of its own, and its remainder is left out."""
    rounds_per_epoch = num_problems // per_round
    epoch, place = divmod(number, rounds_per_epoch)
    generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
    order = torch.randperm(num_problems, generator=generator).tolist()
    return order[place * per_round : (place + 1) * per_round]
