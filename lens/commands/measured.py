"""Replaces what a plan assumes by what a finished run of the same model has measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lens.errors import ConfigError
from lens.planning.architecture import architecture_of
from lens.planning.engines import draw_lengths
from lens.planning.forecast import Plan
from lens.planning.simulation import Costs, simulate_step
from lens.runs.answers import find_answers, read_answers
from lens.runs.run import explain_unfinished, read_config
from lens.training.stored_experience import find_group_size

SECTIONS = ("model", "sampler", "grader", "objective", "loss", "trainer", "filter_groups")  # what decides over a step


@dataclass(frozen=True)
class Measured:
    """What a run says of its steps.

    Attributes:
        folder: the run folder.
        config: the run's config.
        processes: how many processes made it.
        seconds: mean seconds of a step by phase, without those of the first round.
        lengths: tokens of its stored answers, [questions, G].
        prompt: mean tokens of a prompt.
        trained_share: share of the answers that have an advantage.
    """

    folder: Path
    config: DictConfig
    processes: int
    seconds: dict[str, float]
    lengths: np.ndarray
    prompt: float
    trained_share: float

    @classmethod
    def read(cls, folder: Path) -> Measured:
        """Read a run folder.

        Raises:
            ConfigError: the run is not finished, is damaged, stored no answers, or does not say how many processes
                made it.
        """
        if (reason := explain_unfinished(folder)) is not None:
            raise ConfigError("measured", str(folder), f"must be the folder of a finished run: {reason}")
        config = read_config(folder, "measured")
        try:
            processes = json.loads((folder / "provenance.json").read_text())["machine"]["processes"]
            metrics = pd.read_json(folder / "metrics.jsonl", lines=True)
            steps = metrics.dropna(subset="time/step_s").sort_values("train/global_step")
            files = find_answers(folder, "rollouts").values()
            columns = ["problem_id", "sample", "length", "prompt_ids", "advantage"]
            answers = pd.concat([read_answers(file, columns) for file in files])
        except (OSError, ValueError, KeyError) as error:
            valid = f"must have the steps, the stored rollouts and the number of processes of a run ({error})"
            raise ConfigError("measured", str(folder), valid) from error
        a_round = config.trainer.rollouts.num_prompts_per_rollout // config.trainer.num_prompts_per_step
        later = steps.iloc[a_round:] if len(steps) > a_round else steps  # the first round also warms up
        phases = ("sync", "sample", "grade", "logprobs", "update", "step")
        return cls(
            folder=folder,
            config=config,
            processes=processes,
            seconds={phase: float(later[f"time/{phase}_s"].fillna(0).mean()) for phase in phases},
            lengths=answers["length"].to_numpy().reshape(-1, find_group_size(answers)),
            prompt=float(answers["prompt_ids"].map(len).mean()),
            trained_share=float((answers["advantage"].fillna(0) != 0).mean()),
        )

    def put_into(self, config: DictConfig) -> DictConfig:
        """Return a plan's config with the lengths and the trained share of this run.

        Raises:
            ConfigError: the run trained another model.
        """
        planned, own = architecture_of(config), architecture_of(self.config)
        if planned != own:
            valid = f"must be a run of the plan's model ({planned.parameters:,} parameters; it has {own.parameters:,})"
            raise ConfigError("measured", str(self.folder), valid)
        changed = config.copy()
        changed.mean_prompt_length = max(1, round(self.prompt))
        changed.mean_completion_length = max(1, round(float(self.lengths.mean())))
        changed.trained_share = max(self.trained_share, 1 / self.lengths.size)
        return changed

    def costs(self, plan: Plan) -> Costs:
        """Return the costs with which the simulation of this run has its seconds.

        The exchanges of several processes are part of what is measured of the update; a simulation adds its own.
        """
        config, seconds = plan.config.copy(), self.seconds
        OmegaConf.set_struct(config, False)
        config.num_gpus = self.processes
        for section in SECTIONS:
            config[section] = self.config.get(section)
        own = Plan(config, plan.model, plan.problems, plan.evaluated, plan.asked)
        predicted = simulate_step(own, draw_lengths(own, self.lengths), Costs(grading=1, handling=0))
        answers = own.answers_a_round / own.updates_a_round
        return Costs(
            grading=seconds["grade"] / predicted.grading,
            handling=max(0, 2 * seconds["step"] - sum(seconds.values())) / answers,
            fixed=seconds["sync"],
            sampling=seconds["sample"] / (predicted.sampling + predicted.longest_answer),
            update=(seconds["logprobs"] + seconds["update"]) / (predicted.update + predicted.largest_share),
        )
