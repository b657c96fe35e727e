"""Measures how a step's cost grows with group size, completion length, number of layers and vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM, PreTrainedModel

from lens.benchmarking.measuring import take_medians
from lens.benchmarking.meter import Meter, Row
from lens.benchmarking.workload import Batch, Workload, make_every_answer_teach, make_up_rollouts
from lens.models.loading import DTYPES
from lens.problems.prompts import Prompt
from lens.progress import progress_bar
from lens.reporting.figures import COLORS, COLUMN_WIDTH, MARKERS, STYLE, plt, save_figure
from lens.training.experience import Experience

AXES = {
    "num_generations": "answers a question",
    "max_completion_length": "tokens an answer",
    "num_layers": "layers of the model",
    "vocab_size": "words of the vocabulary",
}
MEASURED = {
    "step s": "step_s",
    "sampling": "sample_s",
    "log-probs": "logprobs_s",
    "update": "update_s",
    "sampling GiB": "sample_gib",
    "update GiB": "update_gib",
}


def measure_scaling(config: DictConfig) -> list[Row]:
    """Measure steps of lens with the transformers engine, or updates alone, and change one size at a time.

    The models have the architecture of the config's model and random weights. So almost every answer runs to the
    length limit.
    """
    base, rows = Workload.load(config), []
    points = list(iterate_points(config, base.model))
    with progress_bar(len(points), unit="size") as bar:
        for axis, value, sizes in points:
            work = resize(base, config, sizes)
            with open_answers(work, config) as answers:
                for number in range(config.warmup + config.rounds):
                    meter = Meter()
                    experience = answers(number, meter)
                    with meter.phase("update"):
                        work.learn(experience)
                    if number >= config.warmup:
                        parameters = sum(p.numel() for p in work.model.parameters())
                        found = {"parameters": parameters, "step_s": sum(meter.seconds.values())}
                        name = {"arm": f"{axis}={value}", "round": number - config.warmup}
                        tokens = {"completion_tokens": int(experience.rollouts.lengths.sum())}
                        rows.append({**name, "axis": axis, "value": value, **sizes, **meter.row(), **tokens, **found})
            bar.update()
    return rows


@contextmanager
def open_answers(work: Workload, config: DictConfig) -> Iterator[Callable[[int, Meter], Experience]]:
    """Yield a function that returns the experience of a round.

    If ``scaling.sampled``, an engine samples the answers and the meter measures it. Otherwise every round gets the same
    made-up answers.
    """
    if not config.scaling.sampled:
        made_up = make_every_answer_teach(make_up_rollouts(work))
        yield lambda number, meter: made_up
        return
    with work.sampler(config.engines.transformers) as sampler:

        def answers(number: int, meter: Meter) -> Experience:
            with meter.phase("sample"):
                rollouts = work.sample(sampler, work.batch(number).prompts, number)
            with meter.phase("logprobs"):
                recomputed = work.old_logprobs(rollouts)
            return make_every_answer_teach(rollouts, work.rollouts.old_logprobs, recomputed)

        yield answers


def iterate_points(config: DictConfig, model: PreTrainedModel) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yield each axis with each of its values, and all sizes at that point.

    Vocabularies larger than the model's own are left out.
    """
    of_model = model.config.get_text_config()
    base = {
        "num_generations": config.trainer.rollouts.num_generations,
        "max_completion_length": config.trainer.rollouts.max_completion_length,
        "num_layers": of_model.num_hidden_layers,
        "vocab_size": of_model.vocab_size,
    }
    for axis in AXES:
        for value in config.scaling[axis]:
            if axis != "vocab_size" or value <= base[axis]:
                yield axis, value, base | {axis: value}


def resize(base: Workload, config: DictConfig, sizes: dict[str, int]) -> Workload:
    """Return the same questions for a model of other sizes with random weights.

    Token ids of the prompts wrap around at the size of the vocabulary.
    """
    rollouts = {name: sizes[name] for name in ("num_generations", "max_completion_length")}
    config = OmegaConf.merge(config, {"trainer": {"rollouts": rollouts}})
    architecture = copy.deepcopy(base.model.config)
    architecture.num_hidden_layers, architecture.vocab_size = sizes["num_layers"], sizes["vocab_size"]
    if getattr(architecture, "layer_types", None):
        architecture.layer_types = architecture.layer_types[: sizes["num_layers"]]
    torch.manual_seed(config.seed)
    dtype = DTYPES[config.model.dtype]
    model = AutoModelForCausalLM.from_config(architecture, dtype=dtype, trust_remote_code=False).eval()
    prompts = [
        Prompt(prompt.problem_id, tuple(token % sizes["vocab_size"] for token in prompt.token_ids))
        for prompt in base.questions.prompts
    ]
    questions: Batch = replace(base.questions, prompts=prompts)
    return Workload(config, model, base.tokenizer, questions)


def tabulate_scaling(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Return a table of the medians over rounds at every size, and under each axis the exponents of its growth."""
    middle = take_medians(rows)
    axes = pd.DataFrame(rows).drop_duplicates("arm").set_index("arm")["axis"]
    measured = {title: name for title, name in MEASURED.items() if name in middle}
    lines = []
    for axis in dict.fromkeys(axes):
        points = middle[axes.loc[middle.index] == axis]
        for _, values in points.iterrows():
            sizes = {"to": f"{values.value:.0f}", "parameters M": f"{values.parameters / 1e6:.2f}"}
            lines.append({"what grows": axis, **sizes, **{key: f"{values[n]:.2f}" for key, n in measured.items()}})
        if len(points) > 1:
            exponents = {key: f"{fit_exponent(points['value'], points[n]):.2f}" for key, n in measured.items()}
            lines.append({"what grows": axis, "to": "exponent", "parameters M": "-", **exponents})
    return pd.DataFrame(lines)


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent b of the power law value = a size^b, by least squares in the logarithms.

    1 is growth in proportion. NaN where a value is not above 0.
    """
    if not np.all(np.asarray(values) > 0):
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(values), deg=1)[0])


def draw_scaling(rows: Sequence[Row], path: Path) -> Path:
    """Draw a column of two panels for each axis, over the size: seconds above, memory below. All scales start at 0."""
    middle, axes = take_medians(rows), pd.DataFrame(rows).drop_duplicates("arm").set_index("arm")["axis"]
    shown = list(dict.fromkeys(axes))
    quantities = {
        "seconds": {"step": "step_s", "sampling": "sample_s", "update": "update_s"},
        "GiB above weights": {"sampling": "sample_gib", "update": "update_gib"},
    }
    with plt.rc_context(STYLE):
        size = (0.8 * COLUMN_WIDTH * len(shown), 4.4)
        figure, panels = plt.subplots(2, len(shown), figsize=size, squeeze=False, layout="constrained", sharex="col")
        for column, axis in enumerate(shown):
            table = middle[axes.loc[middle.index] == axis].sort_values("value")
            for row, (unit, lines) in enumerate(quantities.items()):
                panel = panels[row][column]
                for label, name in lines.items():
                    if name not in table:
                        continue
                    style = ["step", "sampling", "update"].index(label)
                    panel.plot(
                        table["value"],
                        table[name],
                        color=COLORS[style],
                        marker=MARKERS[style],
                        markersize=3,
                        linewidth=1.2,
                        label=label,
                    )
                panel.set(xlim=(0, None), ylim=(0, None), ylabel=unit)
            panels[1][column].set_xlabel(AXES[axis])
            panels[1][column].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panels[0][0].legend(fontsize=7)
        return save_figure(figure, path)
