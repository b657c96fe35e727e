"""The training loop: collect a round of experience, update on it, and now and then evaluate and save.

A *step* is one optimizer update. A *round* samples answers to num_prompts_per_rollout questions and splits them into
mini-batches of num_prompts_per_step questions. Each mini-batch makes one step.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lens.distributed.stop_signals import StopSignals
from lens.errors import RunFailed, StopRequested
from lens.evaluation.evaluator import Evaluator
from lens.evaluation.scores import compute_metrics
from lens.progress import progress_bar
from lens.runs.checkpoints import CheckpointFolder, restore_optimizer
from lens.runs.tracker import Tracker
from lens.seeding import derive_seed, restore_random_states
from lens.training.collecting import Collector
from lens.training.experience import Experience
from lens.training.group_metrics import measure_groups
from lens.training.policy import Policy
from lens.training.stopwatch import Stopwatch
from lens.training.train_state import TrainState
from lens.training.update import compute_gradient, find_non_finite

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """The algorithm of one run. lens/commands/train.py makes its parts.

    Attributes:
        settings: the config's trainer section; configs/trainer/default.yaml explains each key.
        policy: the model with its loss, forward pass, optimizer and schedule.
        collector: collects the experience of a round.
        evaluator: measures accuracy, every ``evaluator.every`` steps.
        tracker: writes metrics, evaluations and rollouts.
        checkpoints: writes checkpoints.
        stop: turns signals into requests to stop.
        show_progress: show a progress bar.
        state: the position of the run; a checkpoint stores it.
        stopwatch: measures the phases of a step.
        saved_at: step of the last checkpoint of the current state; None: there is none.
    """

    settings: DictConfig
    policy: Policy
    collector: Collector
    evaluator: Evaluator
    tracker: Tracker
    checkpoints: CheckpointFolder
    stop: StopSignals
    show_progress: bool
    state: TrainState = field(default_factory=TrainState)
    stopwatch: Stopwatch = field(default_factory=Stopwatch, init=False)
    saved_at: int | None = field(default=None, init=False)

    def run(self) -> dict[str, float]:
        """Train to max_steps, and return the metrics of the last evaluation.

        Raises:
            StopRequested: a signal stopped the run early; a checkpoint has been written.
            RunFailed: a gradient is not finite, the entropy is above its limit, or a checkpoint cannot be written.
        """
        max_steps, at = self.settings.max_steps, self.state
        try:
            with progress_bar(max_steps, initial=at.step, disable=not self.show_progress) as bar:
                self._evaluate_and_save()
                while at.step < max_steps:
                    metrics = self._step()
                    bar.update()
                    bar.set_postfix(reward=metrics["reward"], negative=metrics["groups/frac_negative"])
                    self._evaluate_and_save()
        except StopRequested as stop:
            self._save()
            raise StopRequested(f"at step {at.step} of {max_steps}") from stop
        return at.evaluation

    def _step(self) -> dict[str, float]:
        """Update once, on the next mini-batch of the round, and return its metrics."""
        started, at, limit = time.perf_counter(), self.state, self.settings.max_entropy
        if not at.pending:
            at.pending = self._collect().split(self.settings.num_prompts_per_step)
        batch = at.pending[0]
        metrics = measure_groups(batch, self.policy.loss.weights(batch)) | self._update(batch)
        at.pending.pop(0)
        at.step += 1
        self._log(metrics, batch, time.perf_counter() - started)
        if limit is not None and metrics["entropy"] > limit:
            self._save()
            raise RunFailed(f"step {at.step}: entropy {metrics['entropy']:.3f} > trainer.max_entropy={limit}")
        return metrics

    def _collect(self) -> Experience:
        """Collect the next round, and store it every trainer.rollouts.rollouts_every rounds."""
        at, every = self.state, self.settings.rollouts.rollouts_every
        try:
            collected = self.collector.collect(at.step, at.round, self.stop, self.stopwatch)
        except RunFailed:
            self._save()
            raise
        if every and -at.round % every < collected.draws:  # a multiple of it is among these draws
            self.tracker.write_rollouts(at.step + 1, [collected.experience.to_frame()], self.collector.golds)
        at.round += collected.draws
        at.totals["tokens_generated"] += collected.tokens
        at.totals["groups_dropped"] += collected.dropped
        return collected.experience

    def _update(self, batch: Experience) -> dict[str, float]:
        """Compute the gradient, clip it and apply it. A batch in which nothing teaches has a gradient of zero."""
        policy, step, every = self.policy, self.state.step + 1, self.settings.grad_share_every
        with self.stopwatch.measure("update"):
            due = every > 0 and (step == 1 or step % every == 0)
            with self.stop.abandonable():
                metrics = compute_gradient(policy.model, batch, policy.loss, policy.forward_pass, compare_groups=due)
                metrics["grad_norm"] = policy.clip_gradient()
            metrics["learning_rate"] = policy.learning_rate
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            if "loss" in finite and "grad_norm" in finite:
                finite |= policy.update_weights()
            else:
                self._stop_or_skip(batch)
            policy.scheduler.step()
        return finite

    def _stop_or_skip(self, batch: Experience) -> None:
        """Stop the run or skip this update, as trainer.non_finite says.

        The message names the micro-batch and the file with its answers.

        Raises:
            RunFailed: trainer.non_finite is "stop".
        """
        s, p, step, waiting = self.settings, self.policy, self.state.step + 1, self.state.pending
        done = s.rollouts.num_prompts_per_rollout // s.num_prompts_per_step - len(waiting)  # updates of this round
        file = self.tracker.find_rollouts(range(step - done, step + 1))
        if file is None:
            frames = [part.to_frame() for part in waiting]
            file = self.tracker.write_rollouts(step, frames, self.collector.golds)
        cause = find_non_finite(p.model, batch, p.loss, p.forward_pass)
        message = f"step {step}: {cause}; its rollouts: {file}"
        if s.non_finite == "stop":
            raise RunFailed(message)
        log.warning("%s; this update is skipped", message)
        self.state.totals["updates_skipped"] += 1

    def _evaluate_and_save(self) -> None:
        """Evaluate and save if this step asks for it. The order allows a stop at any point."""
        at, every = self.state, self.evaluator.every
        last = at.step == self.settings.max_steps
        due = last or at.step == 0 or (every and at.step % every == 0)
        best = due and at.evaluated_at != at.step and self._evaluate()
        if last or best or (at.step > 0 and at.step % self.settings.checkpoints.checkpoint_every == 0):
            self._save()
        if self.stop.is_requested() and not last:
            raise StopRequested

    def _evaluate(self) -> bool:
        """Evaluate the current weights, and return whether they are the best so far.

        The seed depends on the run's seed and the step alone.
        """
        at, keep_best = self.state, self.settings.checkpoints.keep_best
        with self.stopwatch.measure("evaluate"), self.stop.abandonable():
            sampler = self.collector.weight_sync.sampler_at(at.step)
            seed = derive_seed(self.collector.seed, "evaluation", at.step)
            per_problem, answers = self.evaluator.evaluate(
                sampler, self.collector.grader, seed, show_progress=self.show_progress
            )
        metrics = compute_metrics(per_problem, by_level=self.evaluator.by_level)
        self.tracker.write_evaluation(at.step, per_problem, answers)
        self.tracker.log(at.step, metrics | self.stopwatch.read())
        at.evaluation, at.evaluated_at, self.saved_at = metrics, at.step, None
        return keep_best is not None and at.update_best(keep_best)

    def _log(self, metrics: dict[str, float], batch: Experience, seconds: float) -> None:
        """Write the metrics of a step, with running totals, times and speed."""
        at = self.state
        at.totals["tokens_trained"] += int(metrics["tokens/trained"])
        totals = {f"total/{name}": value for name, value in at.totals.items()}
        times = self.stopwatch.read() | {"time/step_s": seconds}
        speed = {"tokens_per_second": int(batch.rollouts.lengths.sum()) / seconds}
        epoch = {"epoch": self.collector.epochs(at.round)}
        self.tracker.log(at.step, {**epoch, **self.collector.weight_sync.parity, **metrics, **totals, **times, **speed})

    def _save(self) -> None:
        """Write a checkpoint unless this state has one. Then send W&B the metrics up to here.

        W&B never takes back what it was sent. So it gets nothing that a resumed run may compute again.
        """
        at, s = self.state, self.settings.checkpoints
        if self.saved_at == at.step:
            return
        synced = {"weight_sync": self.collector.weight_sync.state()}
        if hasattr(self.collector.objective, "state_dict"):
            synced["objective"] = self.collector.objective.state_dict()
        state = {**at.state(), **self.policy.state(), **synced, "lines": self.tracker.lines}
        choices = {"keep": s.keep_checkpoints, "best": at.best.get("step"), "whole": at.step == self.settings.max_steps}
        self.checkpoints.save(self.policy.model, self.policy.tokenizer, self.policy.optimizer, state, **choices)
        self.saved_at = at.step
        self.tracker.commit()

    def restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Restore everything but the weights from a checkpoint. The model was loaded with those."""
        self.state, self.saved_at = TrainState.from_state(state), state["step"]
        restore_optimizer(checkpoint, self.policy.model, self.policy.optimizer, state["param_groups"])
        self.policy.scheduler.load_state_dict(state["scheduler"])
        if synced := state.get("weight_sync"):  # checkpoints of 0.2.0 have none
            self.collector.weight_sync.restore(synced)
        if "objective" in state:
            self.collector.objective.load_state_dict(state["objective"])
        restore_random_states(state["random"])
