"""Simulated steps: against pencil and paper, loops over single tokens, and the code that deals work in a run."""

from __future__ import annotations

import pickle
import re
import time
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import lognorm

from lens.commands.plan import tabulate_steps
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.models.loading import load_model
from lens.models.packing import measure_balance, share_prompts, split_into_microbatches
from lens.objectives import lens_advantages
from lens.planning.communication import Communication
from lens.planning.engines import Engines, count_decoding_steps, draw_lengths
from lens.planning.forecast import Plan, make_plan
from lens.planning.simulation import Costs, Row, largest_share, resize, simulate, simulate_asynchronous, simulate_step
from lens.problems.prompts import Prompt
from lens.sampling.parallel_sampler import merge_rollouts
from lens.sampling.rollouts import Rollouts
from lens.training.experience import make_experience
from lens.training.group_metrics import measure_groups
from lens.training.update import Loss
from tests.planning.test_forecast import composed
from tests.support.command_line import run

PARAMETERS, CACHED = 8_030_261_248, 2 * 32 * 8 * 128 * 2  # Llama-3.1-8B, and the bytes of a token's keys and values
TRAFFIC = 3350e9 * 0.4
OVERRIDES = ("experiment=paper/table1_llama", "num_gpus=8", "trainer.memory.data_parallel_shard_degree=8")
NUMBERS = [8, 64, 512]
FREE = Costs(grading=0, handling=0)


def planned(*overrides: str) -> Plan:
    return make_plan(composed(*OVERRIDES, *overrides))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """What the command of docs/scale.md prints."""
    made = planned()
    return simulate(made, NUMBERS, Costs.assumed(made))


# --- sampling --------------------------------------------------------------------------------------------------------


def test_an_answer_starts_where_another_has_ended():
    # Places hold 3 and 1; the 2 follows the 1, and the 5 one of the two that end at 3.
    assert count_decoding_steps(np.array([[3, 1, 2, 5]]), 2).tolist() == [8]
    assert count_decoding_steps(np.array([[3, 1, 2, 5], [1, 1, 1, 9]]), 8).tolist() == [5, 9]


def token_by_token(answers: list[int], places: int, prompt: int) -> tuple[int, int]:
    """The decoding steps of an engine, and the cached tokens that it reads in all of them."""
    waiting, running, steps, cached = list(answers), [], 0, 0
    while waiting or running:
        while waiting and len(running) < places:
            running.append([waiting.pop(0), 0])
        steps += 1
        for answer in running:
            cached += prompt + answer[1]
            answer[1] += 1
        running = [answer for answer in running if answer[1] < answer[0]]
    return steps, cached


@pytest.mark.parametrize("num_gpus", [8, 16])
@pytest.mark.parametrize("places", [5, 64, 256])
def test_the_slowest_engine_is_that_of_a_loop_over_tokens(num_gpus, places):
    made = resize(planned(f"sampler.max_num_seqs={places}"), num_gpus)
    lengths = draw_lengths(made)[:2, :20] // 8 + 1  # 20 questions: some engines get one more than others
    ends = np.zeros((2, num_gpus))
    for number, questions in enumerate(lengths):
        for engine in range(num_gpus):
            steps, cached = token_by_token(questions[engine::num_gpus].flatten().tolist(), places, 150)
            ends[number, engine] = (2 * PARAMETERS * steps + CACHED * cached) / TRAFFIC
    assert Engines(made).slowest(lengths) == pytest.approx(ends.max(axis=1).mean(), rel=1e-3)


def test_sampling_without_waiting_is_what_the_plan_says():
    for overrides in ((), ("sampler.max_num_seqs=100",), ("filter_groups=zero_variance",)):
        made = planned(*overrides)
        seconds = made.hours()["generation for training"][1] * 3600 / 1600 / 8
        assert simulate_step(made, draw_lengths(made), FREE).sampling == pytest.approx(seconds)


def test_the_longest_answer_is_that_of_the_distribution():
    """The mean of the largest of n numbers is the integral of 1 - F^n."""
    made = planned()
    longest = draw_lengths(made).max(axis=(1, 2))
    spread = np.sqrt(np.log1p(0.7**2))
    ends = np.arange(4096)
    below = lognorm.cdf(ends, spread, scale=600 * np.exp(-(spread**2) / 2))
    assert longest.mean() == pytest.approx((1 - below**2048).sum(), rel=0.05)
    assert longest.max() <= 4096
    drawn = draw_lengths(resize(made, 512, 64))
    assert drawn.mean() == pytest.approx(600, rel=0.01) and drawn.std() == pytest.approx(420, rel=0.03)
    assert (draw_lengths(planned("length_spread=0")) == 600).all()


def test_stored_groups_are_drawn_whole():
    stored = np.array([[1, 2], [30, 40]])
    drawn = draw_lengths(planned(), stored)
    assert drawn.shape == (32, 128, 16)
    few, many = (np.isin(drawn, row).all(axis=2) for row in stored)
    assert (few ^ many).all() and few.mean() == pytest.approx(0.5, abs=0.05)


# --- update ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_gpus", [8, 64, 512])
def test_the_largest_share_is_that_of_the_code_that_deals_micro_batches(tiny_folder, num_gpus):
    made = resize(planned(), num_gpus)
    lengths = draw_lengths(made)[:1, :32]
    model, _ = load_model(str(tiny_folder))
    nothing = torch.zeros(512, 1)
    rollouts = Rollouts(
        prompts=[Prompt(str(number), (0,) * 150) for number in range(32)],
        num_generations=16,
        completion_ids=nothing.long(),
        logprobs=nothing,
        lengths=torch.tensor(lengths.flatten()),
        finish_reasons=["stop"] * 512,
        texts=[""] * 512,
    )
    dealt = measure_balance(model, rollouts, range(512), 10240, num_gpus)
    assert largest_share(lengths.reshape(1, -1) + 150, num_gpus) == pytest.approx(dealt, rel=0.25)


# --- a step ----------------------------------------------------------------------------------------------------------


def test_a_step_is_what_a_pencil_says():
    made = planned("length_spread=0")
    step = simulate_step(made, draw_lengths(made), Costs(grading=0.002, handling=0.001, fixed=3))
    # 256 answers of 600 tokens on each GPU, all at once; four updates a round.
    cached = 256 * 600 * (150 + 300)
    assert step.sampling == pytest.approx((2 * PARAMETERS * 600 + CACHED * cached) / TRAFFIC / 4)
    assert step.longest_answer == pytest.approx(0, abs=1e-9) and step.largest_share == 0
    forward = 2 * (PARAMETERS - 128_256 * 4096) + 4 * 32 * 4096 * 375
    passes = 512 * 750 * (1 + 4 * 0.8)  # rated once; 0.8 of them take four passes
    assert step.update == pytest.approx(passes * forward / 8 / (989e12 * 0.35))
    assert step.grading == pytest.approx(512 * 0.002 / 8 / 2)
    # An id, a log-probability, and two values that are summed, which takes two ways, over 600 places each.
    rollouts = 7 / 8 * 512 * 600 * (8 + 4 + 2 * 8) / 50e9
    assert step.exchange == pytest.approx(Communication(made, 8).total_seconds() + rollouts)
    assert step.serial == pytest.approx(512 * 0.001 + 3 + 12 * PARAMETERS / 2e9 / 50)
    assert step.total == pytest.approx(sum(asdict(step).values())) and step.dominant == "update"


def test_more_gpus_never_take_longer_for_what_divides(rows):
    strong, weak = rows[:3], rows[3:]
    for fewer, more in pairwise(strong):
        for phase in ("sampling", "grading", "update"):
            assert getattr(more.step, phase) < getattr(fewer.step, phase)
        assert more.step.serial == fewer.step.serial and more.step.total < fewer.step.total
        assert more.efficiency < fewer.efficiency
    for fewer, more in pairwise(weak):
        for phase in ("sampling", "grading", "update"):
            assert getattr(more.step, phase) == pytest.approx(getattr(fewer.step, phase))
        assert more.step.longest_answer > fewer.step.longest_answer
    assert replace(strong[0], scaling="weak") == weak[0] and strong[0].efficiency == 1
    saving = 12 * PARAMETERS / 2e9 / 50
    assert [row.step.serial - saving for row in weak] == pytest.approx([n / 8 * 512 * 0.0006 for n in NUMBERS])
    last = weak[2]
    assert last.efficiency == pytest.approx(weak[0].step.total / last.step.total)


@pytest.mark.parametrize("nodes", [1, 8])
def test_asynchronous_gpus_are_split_as_a_pencil_says(nodes):
    """Where nothing waits and engines are full, halves of a step share the GPUs by eighths."""
    free = ("length_spread=0", "disk_gbs=1e9", "link_gbs=1e9", "node_link_gbs=1e9", "sampler.max_num_seqs=64")
    made = resize(planned(*free), 8 * nodes, nodes)
    lengths = draw_lengths(made)
    step = simulate_step(made, lengths, FREE)
    best = min(max(step.sampling * 8 / part, step.update * 8 / (8 - part)) for part in range(1, 8))
    assert simulate_asynchronous(made, lengths, FREE) == pytest.approx(best, rel=1e-3)
    assert best >= step.total * 0.999  # nothing is gained where nothing waits


def test_staleness_gives_the_longest_answer_time():
    seconds = []
    for staleness in (1, 2, 4, 8):
        made = resize(planned(f"max_staleness={staleness}"), 64, 8)
        seconds.append(simulate_asynchronous(made, draw_lengths(made), FREE))
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] < 0.9 * seconds[0]
    made = planned("max_staleness=8")
    step = simulate_step(made, draw_lengths(made), FREE)
    assert simulate_asynchronous(made, draw_lengths(made), FREE) > step.sampling + step.update  # no work is saved
    alone = planned("num_gpus=1", "model/lora=default", "trainer.memory.data_parallel_shard_degree=null")
    assert simulate_asynchronous(alone, draw_lengths(alone), FREE) is None


def test_engines_of_several_gpus_read_their_weights_together():
    one, eight = (resize(planned(f"sampler.tensor_parallel_size={size}"), 64, 8) for size in (1, 8))
    lengths = draw_lengths(one)
    assert Engines(eight).number == 8 and Engines(eight).slowest(lengths) < Engines(one).slowest(lengths) / 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["simulate=8"], r"simulate=8: must be a list of rising multiples"),
        (["simulate=[8,12]"], r"simulate=\[8, 12\]: must be a list of rising multiples .*, or null"),
        (["simulate=[64,8]"], r"simulate=\[64, 8\]"),
        (["simulate=[]"], r"simulate=\[\]"),
        (["simulate=[8,a]"], r"simulate=\[8, 'a'\]"),
        (["max_staleness=0"], r"max_staleness=0: must be an integer >= 1"),
        (["measured=/no/such"], r"measured='/no/such': must be the folder of a finished run, or null"),
    ],
)
def test_what_cannot_be_simulated_is_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        planned(*overrides)


def test_gpus_that_do_not_fit_the_plan_are_refused():
    made = planned()
    for numbers, key in (([4, 64], "trainer.memory.data_parallel_shard_degree"), ([64, 512], "num_gpus")):
        with pytest.raises(ConfigError) as error:
            simulate(made, numbers, FREE)
        assert error.value.key == key
    split = planned("sampler.tensor_parallel_size=16")
    with pytest.raises(
        ConfigError, match=r"sampler\.tensor_parallel_size=16: must be a divisor of 8, the number of GPUs"
    ):
        simulate(split, NUMBERS, FREE)


# --- what is printed and measured ------------------------------------------------------------------------------------


def test_the_table_of_the_docs_is_what_the_command_prints(rows):
    page = (CONFIGS.parent / "docs" / "scale.md").read_text()
    table = tabulate_steps(rows)
    (block,) = re.findall(
        rf"^{re.escape('| ' + ' | '.join(table.columns) + ' |')}\n\|[-:| ]+\n((?:\|.+\n)+)", page, re.M
    )
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    for cells, printed in zip(shown, table.to_numpy().tolist(), strict=True):
        for cell, expected in zip(cells, printed, strict=True):
            if re.fullmatch(r"[\d.]+%?", expected):
                assert float(cell.rstrip("%")) == pytest.approx(float(expected.rstrip("%")), abs=0.0101)
            else:
                assert cell == expected


def test_the_script_prints_the_simulation(tmp_path):
    result = run("scripts/plan.py", *OVERRIDES, "simulate=[8,64]", folder=tmp_path)
    assert result.code == 0, result.stderr
    for part in ("Seconds of a step", "strong: 32 questions an update do not divide by 64", "longest answer", "21%"):
        assert part in result.stdout
    refused = run("scripts/plan.py", *OVERRIDES, "simulate=[8,12]", folder=tmp_path)
    assert refused.code == 2 and refused.one_line().startswith("error: simulate=[8, 12]: must be a list")


def test_every_process_handles_all_answers_in_the_time_that_the_config_states(tiny_folder):
    """Prints the seconds of CPU for a round of the paper's shape, of 32 questions; eight processes share them."""
    made = planned()
    made = replace(
        made, config=OmegaConf.merge(made.config, {"trainer": {"rollouts": {"num_prompts_per_rollout": 32}}})
    )
    lengths = draw_lengths(made)[0]
    model, _ = load_model(str(tiny_folder))
    share_prompts(model)
    count, longest, generator = lengths.size, int(lengths.max()), torch.Generator().manual_seed(0)
    logprobs = -torch.rand(count, longest, generator=generator)
    whole = Rollouts(
        prompts=[Prompt(str(number), (0,) * 150) for number in range(32)],
        num_generations=16,
        completion_ids=torch.randint(0, 100, (count, longest), generator=generator),
        logprobs=logprobs,
        lengths=torch.tensor(lengths.flatten()),
        finish_reasons=["stop"] * count,
        texts=["x" * 2 * length for length in lengths.flatten()],
    )
    received = [pickle.dumps(whole.take_questions(range(first, 32, 8))) for first in range(8)]
    verdicts = ["correct" if right else "incorrect" for right in torch.rand(count, generator=generator) < 0.4]

    started = time.process_time()
    rollouts = merge_rollouts(whole.prompts, list(map(pickle.loads, received)))
    split_into_microbatches(model, rollouts, range(count), 10240, processes=8)
    rated = {"trainer_logprobs": logprobs, "entropies": -logprobs, "old_from": "trainer"}
    gathered = make_experience(rollouts, [1] * 32, verdicts, lens_advantages, **rated)
    loss = Loss(None, "seq-mean-token-mean", beta=0, entropy_coef=0, max_completion_length=4096)
    for batch in gathered.split(8):
        measure_groups(batch, loss.weights(batch))
        taught = (loss.weights(batch) * loss.teaches(batch)).nonzero().squeeze(1).tolist()
        split_into_microbatches(model, batch.rollouts, taught, 10240, processes=8)
        measure_balance(model, batch.rollouts, taught, 10240, 8)
    took = 1000 * (time.process_time() - started) / count
    print(f"{took:.2f} ms of CPU for each of {count} answers of at most {longest} tokens, in every process")
    assert made.config.handling_ms / 10 < took < 10 * made.config.handling_ms
