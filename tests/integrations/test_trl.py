"""The objectives in TRL's real trainer: make test-trl."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

pytest.importorskip("trl", reason="TRL is not installed here: make test-trl")
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from lens.integrations import make_objective
from lens.integrations.trl import LensGRPOTrainer
from lens.integrations.trl_checks import find_warnings
from lens.integrations.trl_recorder import Recorder
from lens.models.tiny import TinyRecipe, make_tiny
from lens.objectives import grpo_advantages, lens_advantages, w_reinforce_advantages
from tests.support.trl_runs import GENERATIONS, PROMPTS, Recording, make_trainer, short, verdict

pytestmark = pytest.mark.filterwarnings("ignore:The model's configuration", "ignore:.*pin_memory")


def in_groups(values: list) -> Tensor:
    return torch.tensor(values).view(-1, GENERATIONS)


def confidences(batch: dict[str, Any]) -> Tensor:
    return in_groups([row.mean().exp().item() for row in batch["plain"]])


def right(batch: dict[str, Any]) -> Tensor:
    return in_groups(verdict(batch["ids"])) == 1


def expected_of_lens(batch: dict[str, Any], **inputs: Tensor) -> Tensor:
    return lens_advantages(right(batch), confidences(batch), **inputs).flatten()


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


SHORT = {"max_completion_length": 3}
SETTINGS = {
    "plain": {},
    "two updates of one batch": {"num_iterations": 2, "max_steps": 2},
    "accumulated gradients": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "a batch for two updates": {"per_device_train_batch_size": 8, "steps_per_generation": 2, "max_steps": 3},
    "a mean over answers": {"loss_type": "grpo", "beta": 0.05},
    "hot": {"temperature": 1.5},
}


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_advantages_are_those_of_the_objective(tiny_folder, tmp_path, config):
    trainer = make_trainer(tiny_folder, tmp_path, config=config)
    trainer.train()
    for batch in trainer.batches:
        assert_equal(batch["advantages"], expected_of_lens(batch))
    of_trl = config.keys() & {"num_iterations", "steps_per_generation"}  # it looks back on the batch for itself
    assert trainer.passes == (len(trainer.batches) if of_trl else 0)
    steps = config.get("max_steps", 1)
    assert trainer.state.global_step == steps and len(trainer.batches) == (2 if steps == 3 else 1)
    logged = [row for row in trainer.state.log_history if "groups/frac_negative" in row]
    kinds = right(trainer.batches[0]).sum(dim=1)
    assert logged[0]["groups/frac_negative"] == (kinds == 0).float().mean()
    assert logged[0]["groups/frac_positive"] == (kinds == GENERATIONS).float().mean()
    sizes = trainer.batches[0]["advantages"].abs().double()
    if config.get("loss_type") != "grpo":
        sizes = sizes * trainer.batches[0]["completion_mask"].sum(dim=1)
    in_negative = (sizes.view(-1, GENERATIONS) * (kinds == 0)[:, None]).sum() / sizes.sum()
    assert logged[0]["groups/advantage_share_negative"] == pytest.approx(in_negative.item(), abs=1e-6)


def test_there_are_mixed_and_negative_groups_that_teach(tiny_folder, tmp_path):
    trainer = make_trainer(tiny_folder, tmp_path)
    trainer.train()
    kinds = right(trainer.batches[0]).sum(dim=1)
    of_groups = trainer.batches[0]["advantages"].view(-1, GENERATIONS).abs().sum(dim=1)
    assert (kinds == 0).any() and (kinds % GENERATIONS > 0).any()
    assert (of_groups[kinds < GENERATIONS] > 0).all()


def test_low_rank_adapters(tiny_folder, tmp_path):
    trainer = make_trainer(tiny_folder, tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    trainer.train()
    assert_equal(trainer.batches[0]["advantages"], expected_of_lens(trainer.batches[0]))
    assert trainer.passes == 0


def test_several_reward_functions_and_none_of_a_verdict(tiny_folder, tmp_path):
    config = {"reward_weights": [0.5, 1.0]}
    trainer = make_trainer(tiny_folder, tmp_path, config=config, reward_funcs=[short, verdict], verdict="verdict")
    trainer.train()
    (batch,) = trainer.batches
    of_short = in_groups([0.0 if value is None else value for value in short(batch["ids"])])
    assert_equal(batch["advantages"], expected_of_lens(batch, rewards=0.5 * of_short + right(batch).float()))


def test_an_answer_without_a_verdict_does_not_count(tiny_folder, tmp_path):
    def unsure(completion_ids: list[list[int]], **others: Any) -> list[float | None]:
        return [None if n == 1 else value for n, value in enumerate(verdict(completion_ids))]

    trainer = make_trainer(tiny_folder, tmp_path, reward_funcs=unsure)
    trainer.train()
    (batch,) = trainer.batches
    valid = in_groups([n != 1 for n in range(16)])
    assert_equal(batch["advantages"], expected_of_lens(batch, valid=valid))
    assert batch["advantages"][1] == 0


def test_masked_truncated_answers_do_not_count(tiny_folder, tmp_path):
    config = {"mask_truncated_completions": True, "max_completion_length": 3}
    trainer = make_trainer(tiny_folder, tmp_path, config=config)
    trainer.train()
    (batch,) = trainer.batches
    valid = batch["completion_mask"].any(dim=1).view(-1, GENERATIONS)
    assert not valid.all()
    assert_equal(batch["advantages"], expected_of_lens(batch, valid=valid))


def test_the_log_of_completions_has_the_objective_s_advantages(tiny_folder, tmp_path):
    trainer = make_trainer(tiny_folder, tmp_path, config={"max_steps": 2})
    trainer.train()
    assert list(trainer._logs["advantages"]) == trainer.batches[-1]["advantages"].tolist()


def test_advantages_of_tokens(tiny_folder, tmp_path):
    trainer = make_trainer(tiny_folder, tmp_path, objective="token_lens", objective_options={"alpha": 2.0})
    trainer.train()
    (batch,) = trainer.batches
    assert batch["advantages"].shape == batch["completion_mask"].shape
    mask, of_grpo = batch["completion_mask"].bool(), grpo_advantages(right(batch)).flatten()
    negative = (~right(batch).any(dim=1)).repeat_interleave(GENERATIONS)
    assert negative.any()
    for n, row in enumerate(batch["plain"]):
        pi = row.exp()
        expected = -2.0 / GENERATIONS * pi / pi.mean() if negative[n] else of_grpo[n].expand(len(row))
        torch.testing.assert_close(batch["advantages"][n][mask[n]], expected.float(), rtol=1e-5, atol=1e-6)


def test_entropies_and_the_reference_model_are_given_to_who_asks(tiny_folder, tmp_path):
    given: dict[str, Tensor] = {}

    def mine(correct, *, entropies, reference_logprobs, logprobs, mask, truncated, problem_ids, step, valid=None):
        given.update(entropies=entropies, reference=reference_logprobs, logprobs=logprobs, mask=mask)
        given.update(truncated=truncated, problem_ids=problem_ids, step=step)
        return grpo_advantages(correct, valid=valid)

    trainer = make_trainer(tiny_folder, tmp_path, config={"beta": 0.1}, objective=mine)
    trainer.train()
    (batch,) = trainer.batches
    assert trainer.passes == 0
    plain = torch.nn.utils.rnn.pad_sequence(batch["plain"], batch_first=True).float()
    mask = given["mask"].flatten(0, 1)
    for name in ("logprobs", "reference"):  # before the first update they are the same
        torch.testing.assert_close(given[name].flatten(0, 1)[mask], plain[mask], rtol=0, atol=1e-5)
    assert (given["entropies"].flatten(0, 1)[mask] > 0).all()
    ends = trainer._tokenizer.eos_token_id
    assert given["truncated"].flatten().tolist() == [ids[-1] != ends for ids in batch["ids"]]
    assert given["problem_ids"] == batch["kinds"][::GENERATIONS] and given["step"] == 0


def test_answers_that_an_objective_leaves_out_leave_the_denominator(tiny_folder, tmp_path):
    trainer = make_trainer(tiny_folder, tmp_path, objective="nsr")
    trainer.train()
    (batch,) = trainer.batches
    wrong = ~right(batch).flatten()
    assert wrong.any() and not wrong.all()
    expected = w_reinforce_advantages(right(batch), right_weight=0.0).flatten()
    assert_equal(batch["advantages"], expected)
    lengths = batch["completion_mask"].sum(dim=1)
    assert torch.equal(batch["tool_mask"].sum(dim=1), lengths * wrong)
    assert batch["num_items_in_batch"] == (lengths * wrong).sum()


def test_evaluation_does_not_move_a_memory_and_a_checkpoint_keeps_it(tiny_folder, tmp_path):
    config = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    spo = make_objective("spo")
    questions = Dataset.from_dict({"prompt": PROMPTS})
    trainer = make_trainer(tiny_folder, tmp_path, config=config, objective=spo, eval_dataset=questions)
    trainer.train()
    known = spo.state_dict()
    assert 1 <= len(known["counts"]) <= 4 and len(trainer.batches) > 1
    assert any("eval_groups/frac_negative" in row for row in trainer.state.log_history)
    more = {"config": config | {"max_steps": 2}, "objective": "spo", "eval_dataset": questions}
    again = make_trainer(tiny_folder, tmp_path, **more)
    before: list[dict] = []
    load = again._load_optimizer_and_scheduler
    again._load_optimizer_and_scheduler = lambda c: (load(c), before.append(again.objective.state_dict()))[0]
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert before == [known] and again.state.global_step == 2
    assert json.loads((tmp_path / "checkpoint-2" / "lens_objective.json").read_text()) == again.objective.state_dict()


def test_the_random_numbers_of_an_objective_are_its_own(tiny_folder, tmp_path):
    """Sampling after it goes on as if it had drawn none."""
    ids = []
    for objective in ("lens", "lens_shuffled"):
        trainer = make_trainer(
            tiny_folder, tmp_path, config={"max_steps": 2, "learning_rate": 0.0}, objective=objective
        )
        trainer.train()
        ids.append([batch["ids"] for batch in trainer.batches])
    assert ids[0] == ids[1]


@pytest.mark.parametrize("known", [True, False])
def test_log_probabilities_of_the_engine_are_used_where_they_are_whole(tiny_folder, tmp_path, known):
    """A function of one's own samples; one value that it does not know costs a pass over all answers."""

    def sample(prompts: list[str], trainer: Recording) -> dict[str, list]:
        ids = [[5 + n, 6 + n, 7] for n in range(len(prompts))]
        logprobs = [[-0.1 * n, -0.2, -0.3] for n in range(len(prompts))]
        if not known:
            logprobs[2][1] = math.nan
        return {"prompt_ids": trainer._tokenizer(prompts)["input_ids"], "completion_ids": ids, "logprobs": logprobs}

    trainer = make_trainer(tiny_folder, tmp_path, rollout_func=sample)
    trainer.train()
    (batch,) = trainer.batches
    of_engine = in_groups([math.exp((-0.1 * n - 0.5) / 3) for n in range(16)])
    expected = lens_advantages(right(batch), of_engine).flatten() if known else expected_of_lens(batch)
    assert_equal(batch["advantages"], expected)
    assert trainer.passes == (0 if known else 1)


@pytest.mark.parametrize("happens", ["nothing", "a second sampling", "an answer is changed"])
def test_answers_that_were_not_seen_while_they_were_sampled_cost_a_pass(tiny_folder, tmp_path, happens):
    """A function of one's own samples with TRL's means, and may do more."""

    def sample(prompts: list[str], trainer: Recording) -> dict[str, list | None]:
        prompt_ids = trainer._tokenizer(prompts)["input_ids"]
        for _ in range(2 if happens == "a second sampling" else 1):
            ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, GENERATIONS)
        if happens == "an answer is changed":
            ids[0] = [5, 6, 7]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None}

    trainer = make_trainer(tiny_folder, tmp_path, rollout_func=sample)
    trainer.train()
    (batch,) = trainer.batches
    assert_equal(batch["advantages"], expected_of_lens(batch))
    assert trainer.passes == (0 if happens == "nothing" else 1)


def test_under_the_correction_for_vllm_the_trainer_s_log_probabilities_are_used(tiny_folder, tmp_path):
    """The engine is a function that samples; the correction is TRL's own."""

    def sample(prompts: list[str], trainer: Recording) -> dict[str, list]:
        ids = [[5 + n, 6 + n, 7] for n in range(len(prompts))]
        logprobs = [[-4.0, math.nan, -5.0] for _ in prompts]
        return {"prompt_ids": trainer._tokenizer(prompts)["input_ids"], "completion_ids": ids, "logprobs": logprobs}

    trainer = make_trainer(tiny_folder, tmp_path, rollout_func=sample)
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    trainer.train()
    (batch,) = trainer.batches
    assert batch["importance_sampling_ratio"].shape == (16, 1) and "old_per_token_logps" in batch
    assert_equal(batch["advantages"], expected_of_lens(batch))


# --- what cannot work, and what works against an objective ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "lns"}, "objective='lns': one of"),
        ({"objective_options": {"alhpa": 1}}, "alhpa"),
        ({"objective": "qae", "objective_options": {"quantile": 2.0}}, "quantile"),
        ({"objective": "pass_at_k", "objective_options": {"k": 9}}, "k=9"),
        ({"objective": "ace"}, "beta=0.0: the objective needs the reference model"),
        ({"verdict": "lenght"}, "verdict='lenght': one of the reward functions verdict"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(tiny_folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tiny_folder, tmp_path, **options)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"delta": 2.0}, {}, "delta=2.0 stops pushing"),
        ({"off_policy_mask_threshold": 0.1}, {}, "off_policy_mask_threshold=0.1 takes wrong answers"),
        ({"scale_rewards": "none"}, {}, "scale_rewards='none' has no effect"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, {}, "multi_objective_aggregation="),
        ({"loss_type": "grpo"}, {"objective": "psr"}, "loss_type='grpo' counts answers"),
        ({}, {"reward_funcs": [verdict, short]}, "verdict=None: of the reward functions verdict, short the first"),
    ],
)
def test_a_key_that_works_against_the_objective_brings_a_warning_that_names_it(
    tiny_folder, tmp_path, config, options, message
):
    with pytest.warns(UserWarning, match=message):
        make_trainer(tiny_folder, tmp_path, config=config, **options)


def test_masks_of_the_correction_for_vllm_bring_a_warning():
    config = {"output_dir": "none", "use_cpu": True, "bf16": False, "use_vllm": True}
    (message,) = find_warnings(GRPOConfig(**config), [], leaves_out=False)
    assert message.startswith("vllm_importance_sampling_mode='sequence_mask' takes whole answers")
    kept = GRPOConfig(**config, vllm_importance_sampling_mode="token_truncate")
    assert find_warnings(kept, [], leaves_out=False) == []


def test_a_verdict_that_is_none_is_said_with_its_name(tiny_folder, tmp_path: Path):
    def soft(completion_ids, **others):
        return [0.3 + 0.1 * (n % 4) for n in range(len(completion_ids))]

    trainer = make_trainer(tiny_folder, tmp_path, reward_funcs=[verdict, soft], verdict="soft")
    with pytest.warns(UserWarning, match="the rewards of soft are not verdicts of 1 and 0.*verdict=NAME"):
        trainer.train()


def test_rewards_that_are_no_verdicts_bring_a_warning(tiny_folder, tmp_path: Path):
    trainer = make_trainer(tiny_folder, tmp_path, reward_funcs=short)
    with pytest.warns(UserWarning, match="rewards are not verdicts"):
        trainer.train()


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_the_plug_in_takes_under_one_percent_of_a_step(tmp_path, monkeypatch, capsys):
    """Of processor time, on the tiny experiment: each method less TRL's inside it, and the recorder."""
    seconds: dict[str, float] = defaultdict(float)

    def count(owner: type, method: str, what: str) -> None:
        inside = getattr(owner, method)

        def counted(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            result = inside(*arguments, **options)
            seconds[what] += time.process_time() - started
            return result

        monkeypatch.setattr(owner, method, counted)

    for method in ("_generate_and_score_completions", "_calculate_rewards", "_generate_single_turn"):
        count(GRPOTrainer, method, "TRL")
        count(LensGRPOTrainer, method, "all")
    count(Recorder, "_see", "recorder")
    count(GRPOTrainer, "training_step", "step")
    shape = {"per_device_train_batch_size": 256, "num_generations": 8, "max_completion_length": 26, "max_steps": 4}
    model = make_tiny(TinyRecipe(steps=1), tmp_path)
    make_trainer(model, tmp_path, config=shape, kind=LensGRPOTrainer).train()
    own = seconds["all"] - seconds["TRL"] + seconds["recorder"]
    with capsys.disabled():
        of_recorder, of_all = (f"{100 * part / seconds['step']:.2f} %" for part in (seconds["recorder"], own))
        print(f"\nof TRL's step, {seconds['step'] / 4:.2f} s: the plug-in {of_all}, in it the recorder {of_recorder}")
    assert 0 < own < 0.01 * seconds["step"]
