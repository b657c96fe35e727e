"""Deals campaigns: which run is killed, and across which extensions; all from one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.command_line import training
from tests.support.vllm_engine import VLLM

MAX_STEPS = 24
KILLS = {"transformers": 8, "vllm": 4}  # of one run; an engine of vLLM takes seconds to start
# Both objectives remember earlier rounds. By the updates a round: one that also draws, and one that knows each problem.
OBJECTIVES = {1: "lens_shuffled", 2: "pass_g"}
# What one pass through the cards deals, one card a campaign.
CARDS = {
    "engine": [("transformers", 1)] * 28 + [("transformers", 2)] * 9 + [("vllm", 1)] * 2 + [("vllm", 2)],
    "adapters": [False, True],
    "updates": [1, 2, 2],
    "disk": [False, False, True],
    "stages": [(MAX_STEPS,), (MAX_STEPS,), (6, MAX_STEPS), (6, 15, MAX_STEPS)],
}


@dataclass(frozen=True)
class Campaign:
    """A run that is killed again and again.

    Attributes:
        number: its place in the deal.
        sampler, processes: the rollout engine, and how many processes train.
        adapters: whether adapters are trained.
        updates: updates a round.
        disk: whether the disk is full now and then.
        stages: the values of max_steps, one after the other.
        random: decides when it is killed.
    """

    number: int
    sampler: str
    processes: int
    adapters: bool
    updates: int
    disk: bool
    stages: Sequence[int]
    random: random.Random

    @property
    def configuration(self) -> str:
        """What decides its end, in a word; campaigns with the same end the same."""
        return f"{self.sampler}-{self.processes}-{'adapters' if self.adapters else 'full'}-{self.updates}"

    def axes(self) -> dict[str, Any]:
        """Its values, for the ledger."""
        names = "sampler", "processes", "adapters", "updates", "disk"
        return {name: getattr(self, name) for name in names} | {"stages": list(self.stages)}

    def command(self, pupil: Path, outputs: Path) -> list[object]:
        """The command of its run, without max_steps and the run folder."""
        adapters = ["model/lora=default", "model.lora.r=4"] if self.adapters else []
        keys = {"num_prompts_per_rollout": 4 * self.updates, "checkpoint_every": 2, "learning_rate": 1e-3}
        objective = ["objective=share", f"objective@objective.objective={OBJECTIVES[self.updates]}"]
        overrides = [*adapters, *(VLLM if self.sampler == "vllm" else []), *objective]
        return training(pupil, outputs, *overrides, "evaluation.every=3", **keys, keep_best="pass@1")


def deal(seed: int, number: int) -> Campaign:
    """The campaign with a number: the same for the same seed, however many are dealt."""
    card = {axis: draw(seed, axis, cards, number) for axis, cards in CARDS.items()}
    sampler, processes = card.pop("engine")
    return Campaign(number, sampler, processes, **card, random=random.Random(f"{seed}/{number}"))


def draw(seed: int, axis: str, cards: list, number: int) -> Any:
    """The card of an axis: each pass shuffles all cards anew."""
    shuffle, place = divmod(number, len(cards))
    cards = list(cards)
    random.Random(f"{seed}/{axis}/{shuffle}").shuffle(cards)
    return cards[place]
