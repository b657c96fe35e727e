"""The training loop: sample, grade, weigh, update, and now and then evaluate and save.

A *step* is one optimizer update. A *round* samples num_prompts_per_rollout questions and is split into mini-batches of
num_prompts_per_step, each of which is one step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from lens.distributed.collectives import whole
from lens.distributed.stop_signals import StopSignals
from lens.errors import RunFailed, StopRequested
from lens.evaluation.evaluator import Evaluator
from lens.evaluation.scores import metrics_of
from lens.grading.pool import Grader
from lens.problems.prompts import Prompt
from lens.progress import progress_bar
from lens.runs import checkpoints
from lens.runs.tracker import Tracker
from lens.sampling.rollouts import Sampler
from lens.seeding import derive_seed
from lens.training.experience import Experience, weigh
from lens.training.train_state import Position, round_of_questions
from lens.training.update import Loss, compute_gradient, find_non_finite, make_optimizer
from lens.training.weight_sync import SyncedSampler

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """One run. Its parts are made elsewhere (lens/runs.py): this class is the algorithm.

    ``settings`` is the config's trainer section; configs/trainer explains each key. ``identity`` goes into every
    checkpoint: whose it is (the config, the W&B run).
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
    stop: StopSignals
    show_progress: bool
    identity: dict[str, Any]
    position: Position = field(default_factory=Position)
    timings: dict[str, float] = field(default_factory=dict)
    saved_at: int | None = None

    def __post_init__(self):
        s = self.settings
        self.optimizer = make_optimizer(self.model, s)
        self.scheduler = get_scheduler(s.lr_scheduler, self.optimizer, s.warmup_steps, s.max_steps)
        self.engine = SyncedSampler(self.sampler, self.model, self.prompts, self.loss)
        self.golds = dict(zip(self.problems["id"], self.problems["answer"], strict=True))

    def run(self) -> dict[str, float]:
        """Train to max_steps; returns the metrics of the last evaluation.

        Raises:
            StopRequested: stopped early, after a checkpoint.
            RunFailed: a gradient that is not finite, an entropy that tells of a collapse, a checkpoint not written.
        """
        s, at = self.settings, self.position
        try:
            with progress_bar(s.max_steps, initial=at.step, disable=not self.show_progress) as bar:
                self._evaluate_and_save()
                while at.step < s.max_steps:
                    metrics = self._step()
                    bar.update()
                    bar.set_postfix(reward=metrics["reward"], negative=metrics["groups/frac_negative"])
                    self._evaluate_and_save()
        except StopRequested as stop:
            self._save()
            raise StopRequested(f"at step {at.step} of {s.max_steps}") from stop
        return at.evaluation

    def _step(self) -> dict[str, float]:
        """One optimizer update, on the next mini-batch of the round; returns its metrics."""
        started, s, at = time.perf_counter(), self.settings, self.position
        if not at.pending:
            at.pending = self._collect().split(s.num_prompts_per_step)
        batch = at.pending[0]
        metrics = batch.metrics(self.loss.weights(batch)) | self._update(batch)
        at.pending.pop(0)
        at.step += 1
        self._log(metrics, batch, time.perf_counter() - started)
        if s.max_entropy is not None and metrics["entropy"] > s.max_entropy:
            self._save()
            raise RunFailed(f"step {at.step}: entropy {metrics['entropy']:.3f} > trainer.max_entropy={s.max_entropy}")
        return metrics

    def _evaluate_and_save(self) -> None:
        """What is due at this step, in an order that a stop can break off anywhere."""
        s, at = self.settings, self.position
        last = at.step == s.max_steps
        due = last or at.step == 0 or (self.evaluate_every and at.step % self.evaluate_every == 0)
        best = due and at.evaluated_at != at.step and self._evaluate()
        if last or best or (at.step > 0 and at.step % s.checkpoint_every == 0):
            self._save()
        if self.stop.agreed() and not last:
            raise StopRequested

    def _collect(self) -> Experience:
        """One round: questions, answers, verdicts, advantages."""
        s, at = self.settings, self.position
        questions = round_of_questions(len(self.problems), s.num_prompts_per_rollout, self.seed, at.round)
        problems = self.problems.select(questions)
        prompts = [self.prompts[index] for index in questions]
        with self._timed("sync"):
            sampler = self.engine.at(at.step)
        with self._timed("sample"), self.stop.abandonable():
            rollouts = sampler.sample(
                prompts,
                s.num_generations,
                derive_seed(self.seed, "round", at.round),
                max_completion_length=s.max_completion_length,
                temperature=s.temperature,
                top_p=s.top_p,
            )
        with self._timed("grade"), self.stop.abandonable():
            golds = [gold for gold in problems["answer"] for _ in range(s.num_generations)]
            verdicts = [grade.verdict for grade in self.grader.grade(rollouts.texts, golds)]
        with self._timed("logprobs"), self.stop.abandonable():
            recomputed = "trainer" in (s.old_logprobs, s.confidence) or s.importance_sampling != "none"
            logprobs, entropies = self.loss.recompute(self.model, rollouts) if recomputed else (None, None)
            reference = None if self.reference is None else self.loss.recompute(self.reference, rollouts)[0]
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
            self.tracker.write_rollouts(at.step + 1, [experience], self.golds)
        at.round += 1
        at.totals["tokens_generated"] += int(rollouts.lengths.sum())
        return experience

    def _update(self, batch: Experience) -> dict[str, float]:
        """One optimizer step; a batch without any advantage is a step with a gradient of zero."""
        s, step = self.settings, self.position.step + 1
        with self._timed("update"):
            share = s.grad_share_every > 0 and (step == 1 or step % s.grad_share_every == 0)
            with self.stop.abandonable():
                metrics = compute_gradient(self.model, batch, self.loss, share=share)
                metrics["grad_norm"] = whole(clip_grad_norm_(self.model.parameters(), s.max_grad_norm)).item()
            metrics["learning_rate"] = self.scheduler.get_last_lr()[0]
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            if "loss" in finite and "grad_norm" in finite:
                self.optimizer.step()
            else:
                self._stop_or_skip(batch)
            self.scheduler.step()
        return finite

    def _stop_or_skip(self, batch: Experience) -> None:
        """What trainer.non_finite says, with the micro-batch to blame and its answers stored."""
        s, step, waiting = self.settings, self.position.step + 1, self.position.pending
        done = s.num_prompts_per_rollout // s.num_prompts_per_step - len(waiting)  # updates of this round
        stored = self.tracker.find_rollouts(range(step - done, step + 1))
        file = stored or self.tracker.write_rollouts(step, waiting, self.golds)
        message = f"step {step}: {find_non_finite(self.model, batch, self.loss)}; its rollouts: {file}"
        if s.non_finite == "stop":
            raise RunFailed(message)
        log.warning("%s; this update is skipped", message)
        self.position.totals["updates_skipped"] += 1

    def _evaluate(self) -> bool:
        """Evaluate the current weights; whether they are the best so far. The step decides the seed, alike for all."""
        at = self.position
        with self._timed("evaluate"), self.stop.abandonable():
            sampler = self.engine.at(at.step)
            seed = derive_seed(self.seed, "evaluation", at.step)
            per_problem, answers = self.evaluator.evaluate(sampler, self.grader, seed, show_progress=self.show_progress)
        metrics = metrics_of(per_problem, by_level=self.evaluator.by_level)
        self.tracker.write_evaluation(at.step, per_problem, answers)
        self.tracker.log(at.step, metrics | {"time/evaluate_s": self.timings.pop("evaluate")})
        at.evaluation, at.evaluated_at, self.saved_at = metrics, at.step, None
        return self.settings.keep_best is not None and at.update_best(self.settings.keep_best)

    def _log(self, metrics: dict[str, float], batch: Experience, seconds: float) -> None:
        at = self.position
        at.totals["tokens_trained"] += int(metrics["tokens/trained"])
        times = {f"time/{name}_s": self.timings.pop(name) for name in list(self.timings)} | {"time/step_s": seconds}
        tokens = int(batch.rollouts.lengths.sum())
        epoch = at.round * self.settings.num_prompts_per_rollout / len(self.problems)
        totals = {f"total/{name}": value for name, value in at.totals.items()}
        speed = {"tokens_per_second": tokens / seconds}
        self.tracker.log(at.step, {"epoch": epoch, **self.engine.parity, **metrics, **totals, **times, **speed})

    def _save(self) -> None:
        """A checkpoint, if there is none of this state; only what it holds is given to W&B: nothing is taken back."""
        at = self.position
        if self.saved_at == at.step:
            return
        state = {**self.identity, **at.state(), "scheduler": self.scheduler.state_dict(), "lines": self.tracker.lines}
        kept = {"keep": self.settings.keep_checkpoints, "best": at.best.get("step")}
        checkpoints.save(self.folder / "checkpoints", self.model, self.tokenizer, self.optimizer, state, **kept)
        self.saved_at = at.step
        self.tracker.commit()

    def restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint and its state; the weights are those that the model was loaded with."""
        self.position = Position.from_state(state)
        self.saved_at = state["step"]
        checkpoints.restore_optimizer(checkpoint, self.model, self.optimizer, state["param_groups"])
        self.scheduler.load_state_dict(state["scheduler"])
        checkpoints.restore_random_states(state["random"])

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - started
