"""Run folders in the form that training leaves them, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf

from lens import __version__
from lens.evaluation.scores import compute_metrics
from lens.files import write_json, write_parquet
from lens.objectives import calibrated_rewards, grpo_advantages, lens_advantages

SEEDS = (0, 1, 2, 3)
SKILL = {"grpo": 0.4, "lens": 0.55}
ADVANTAGES = {"grpo": grpo_advantages, "lens": lens_advantages}
G = 4
TEXTS = (
    r"so $\frac{1}{2}$ of it: \boxed{7}",
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title='broken'\"> & $x^{2}_{1}$",
    "no box, but ünïcode \u2028 and \\begin{constructor} \\constructor{}",
)


def make_run(
    folder: Path,
    objective: str,
    seed: int,
    *overrides: str,
    config: dict | None = None,
    sets: tuple = ("arithmetic",),
    choices: dict | None = None,
) -> Path:
    """A finished run folder: evaluations at 0, 10 and 20, a line for each step."""
    values = {
        "seed": seed,
        "outputs": str(folder),
        "resume": "auto",
        "tracking": {"wandb": {"mode": "offline"}},
        "model": {"name_or_path": None},
        "trainer": {"max_steps": 20},
        "loss": {"beta": 0.0},
        "optimizer": {"learning_rate": 1e-4},
        "evaluation": {"every": 10, "num_samples": 4, "sets": {name: {"source": name} for name in sets}},
    }
    task = [f"objective={objective}", f"seed={seed}", *overrides]
    chosen = {"objective": objective, "model": "tiny", "dataset": "arithmetic", **(choices or {})}
    hydra = {"hydra": {"runtime": {"choices": chosen}, "overrides": {"task": task}}}
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.merge(values, config or {}), folder / ".hydra" / "config.yaml")
    OmegaConf.save(hydra, folder / ".hydra" / "hydra.yaml")
    rng = np.random.default_rng([seed, len(objective), len(overrides)])
    lines = []
    for step in range(21):
        if step:
            share = rng.uniform(0.2, 0.5)
            lines.append(
                {
                    "train/global_step": step,
                    "groups/frac_negative": share,
                    "groups/frac_negative/level_1": share / 2,
                    "groups/frac_negative/level_5": min(1.0, share * 2),
                    "groups/advantage_share_negative": 0.0 if objective == "grpo" else share / 10,
                    "entropy": rng.uniform(0.1, 0.3),
                    "total/tokens_generated": 100 * step,
                    "total/tokens_trained": 60 * step,
                    "time/step_s": 1.0,
                }
            )
            if step % 10 == 0:
                lines[-1]["groups/grad_norm_share_negative"] = lines[-1]["groups/advantage_share_negative"] / 2
        if step % 10 == 0:
            skill = SKILL.get(objective, 0.5) * (0.5 + step / 40)
            rows = pd.DataFrame(
                {
                    "set": name,
                    "id": f"{name}/{number}",
                    "level": 1 + number % 5,
                    "subject": "Algebra",
                    "n": 4,
                    "correct": rng.binomial(4, skill),
                    **dict.fromkeys(("truncated", "no_answer", "timeout", "error", "bad_gold"), 0),
                }
                for name in sets
                for number in range(50)
            )
            write_parquet(folder / "evaluations" / f"step_{step:06d}.parquet", rows)
            lines.append({"train/global_step": step, **compute_metrics(rows), "time/evaluate_s": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "summary.json", {"step": 20, "metrics": {}, "lens_version": __version__})
    return folder


def add_rollouts(folder: Path, objective: str, *, steps: tuple = (1, 11), questions: int = 20, seed: int = 0) -> None:
    """Rollouts of a run: groups of all kinds, at Levels 1 to 5 and without one, in texts that nobody should trust."""
    for step in steps:
        rng = np.random.default_rng([seed, step])
        confidence = torch.tensor(rng.uniform(0.2, 0.99, (questions, G)), dtype=torch.float32)
        chance = np.repeat(rng.choice([0.0, 0.4, 1.0], (questions, 1)), G, axis=1)
        verdicts = np.where(rng.random((questions, G)) < chance, "correct", "incorrect").astype(object)
        verdicts[0, 0] = "timeout"
        valid = torch.tensor(verdicts != "timeout")
        correct = torch.tensor(verdicts == "correct")
        levels = [None if q % 6 == 5 else 1 + q % 6 for q in range(questions)]
        rows = pd.DataFrame(
            {
                "problem_id": np.repeat([f"p/{step}/{q}" for q in range(questions)], G),
                "level": pd.array(np.repeat(np.array(levels, dtype=object), G), dtype="Int64"),
                "sample": list(range(G)) * questions,
                "prompt_ids": [[1, 2]] * questions * G,
                "length": rng.integers(1, 30, questions * G),
                "finish_reason": "stop",
                "text": [TEXTS[i % len(TEXTS)] for i in range(questions * G)],
                "verdict": verdicts.flatten(),
                "valid": valid.flatten().numpy(),
                "confidence": confidence.flatten().numpy(),
                "calibrated_reward": calibrated_rewards(correct, confidence, valid=valid).flatten().numpy(),
                "advantage": ADVANTAGES[objective](correct, confidence, valid=valid).flatten().numpy(),
                "answer": "7",
            }
        )
        write_parquet(folder / "rollouts" / f"step_{step:06d}.parquet", rows)
