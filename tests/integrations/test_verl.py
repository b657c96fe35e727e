"""LENS inside verl: the real registry, compute_advantage and trainers, in an environment of its own.

`make test-verl` makes the environment and runs this.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed here: make test-verl")

from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

from lens import objectives
from lens.integrations import verl as plugin
from lens.integrations.names import NAMES, make_objective
from lens.integrations.verl import Round, handed_over, make_estimator
from lens.objectives.inputs import InputError
from tests.support.verl.answers import CORRECT, GROUPS, LONGEST, SIZE, Batch, config, trainer

EXACT = {"atol": 1e-6, "rtol": 0}
ON_VERDICTS = {
    "dr_grpo": lambda: objectives.grpo_advantages(CORRECT, scale_by_std=False),
    "max_rl": lambda: objectives.max_rl_advantages(CORRECT),
    "ngrpo": lambda: objectives.ngrpo_advantages(CORRECT),
    "pass_at_k": lambda: objectives.pass_at_k_advantages(CORRECT, k=4),
    "qae": lambda: objectives.qae_advantages(CORRECT),
    "uniform": lambda: objectives.uniform_advantages(CORRECT),
    "w_reinforce": lambda: objectives.w_reinforce_advantages(CORRECT),
}


# --- estimators ------------------------------------------------------------------------------------------------------


def test_every_objective_is_registered_but_those_that_verl_has():
    assert set(core_algos.ADV_ESTIMATOR_REGISTRY) >= set(NAMES)
    assert set(NAMES) - plugin.REGISTERED == {"grpo", "rloo"}
    for name in ("grpo", "rloo"):
        assert core_algos.get_adv_estimator_fn(name).__module__ == core_algos.__name__


def test_what_is_registered_stays_when_the_module_is_loaded_twice():
    before = dict(core_algos.ADV_ESTIMATOR_REGISTRY), dict(TRAINER_REGISTRY)
    plugin.register()
    assert (dict(core_algos.ADV_ESTIMATOR_REGISTRY), dict(TRAINER_REGISTRY)) == before


@pytest.mark.parametrize("name", ON_VERDICTS)
def test_compute_advantage_gives_the_objectives_advantages(name):
    batch = Batch()
    data = compute_advantage(batch.proto(), adv_estimator=name, config=config().algorithm)
    expected = batch.rows(ON_VERDICTS[name]())
    torch.testing.assert_close(data.batch["advantages"], expected, **EXACT)
    torch.testing.assert_close(data.batch["returns"], expected, **EXACT)


def test_options_come_from_the_algorithm_config():
    batch, algorithm = Batch(), config("+algorithm.objective_options.alpha=2.0").algorithm
    data = compute_advantage(batch.proto(), adv_estimator="uniform", config=algorithm)
    torch.testing.assert_close(
        data.batch["advantages"], batch.rows(objectives.uniform_advantages(CORRECT, alpha=2.0)), **EXACT
    )


def test_rewards_of_1_and_minus_1_are_verdicts():
    batch = Batch()
    data = batch.proto()
    data.batch["token_level_rewards"] = 2 * data.batch["token_level_rewards"]
    lengths = data.batch["response_mask"].sum(dim=1)
    data.batch["token_level_rewards"][torch.arange(len(lengths)), lengths - 1] -= 1
    data = compute_advantage(data, adv_estimator="w_reinforce", config=config().algorithm)
    torch.testing.assert_close(data.batch["advantages"], batch.rows(ON_VERDICTS["w_reinforce"]()), **EXACT)


def test_empty_answers_that_fill_a_batch_up_count_for_nothing(recwarn):
    """verl adds copies without a token or a reward, in groups of their own. Verdicts of 1 and -1 stay verdicts."""
    correct = torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0], [0, 0]])
    rewards = torch.zeros(5, 2)
    rewards[:, 0] = correct
    rows = Round(make_objective("uniform"), [f"{row}_0_0" for row in range(5)], mask.bool(), {}, metrics := {}, True)
    with handed_over(rows):
        advantages, _ = make_estimator("uniform")(rewards, mask, index=["a", "a", "b", "b", "padding"])
    alone = objectives.uniform_advantages(torch.tensor([[1, 0], [0, 1]]).bool()).flatten()
    torch.testing.assert_close(advantages[:4], alone[:, None] * mask[:4], **EXACT)
    assert (advantages[4] == 0).all() and not recwarn.list
    assert metrics["groups/frac_mixed"] == 1.0


@pytest.mark.parametrize("options", ["quantile=2.0", "quantile=-1"])
def test_an_option_out_of_range_is_refused_when_the_trainer_is_made(options):
    with pytest.raises(ValueError, match="quantile"):
        trainer("algorithm.adv_estimator=qae", f"+algorithm.objective_options.{options}")


def test_options_of_an_estimator_of_verls_own_are_said_to_do_nothing():
    with pytest.warns(UserWarning, match="objective_options has no effect on algorithm.adv_estimator=grpo.*: alpha"):
        trainer("algorithm.adv_estimator=grpo", "+algorithm.objective_options.alpha=1.0")


def test_rewards_that_are_no_verdicts_are_said_by_the_name_of_their_key():
    data = Batch().proto()
    data.batch["token_level_rewards"] = 0.7 * data.batch["token_level_rewards"]
    with pytest.warns(UserWarning, match=r"reward\.custom_reward_function are not verdicts"):
        advantages = compute_advantage(data, adv_estimator="uniform", config=config().algorithm).batch["advantages"]
    assert (advantages != 0).any()


def test_missing_ids_are_refused():
    data = Batch().proto()
    del data.non_tensor_batch["uid"]
    with pytest.raises(ValueError, match="uid is missing"):
        compute_advantage(data, adv_estimator="uniform", config=config().algorithm)


@pytest.mark.parametrize(("name", "missing"), [("lens", "confidence"), ("rl_zvp", "entropies"), ("spo", "its memory")])
def test_what_an_old_trainer_does_not_hand_over_is_refused(name, missing):
    with pytest.raises(ValueError, match=rf"adv_estimator={name} needs .*{missing}.*trainer\.use_v1=true"):
        compute_advantage(Batch().proto(), adv_estimator=name, config=config().algorithm)


# --- trainers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_each_trainer_of_verl_hands_over_log_probabilities(mode, monkeypatch):
    made = trainer("algorithm.adv_estimator=lens", mode=mode)
    made.global_steps = 1
    batch = Batch()
    metrics = {}
    made._compute_advantage(batch.queue(monkeypatch), metrics=metrics)
    expected = batch.rows(objectives.lens_advantages(CORRECT, batch.confidence))
    torch.testing.assert_close(batch.written["advantages"].to_padded_tensor(0.0), expected, **EXACT)
    assert metrics["groups/frac_negative"] == pytest.approx(2 / GROUPS)
    in_negative = batch.rows((~CORRECT.any(dim=1, keepdim=True)).expand_as(CORRECT)).bool()
    share = (expected * in_negative).abs().sum() / expected.abs().sum()  # verl's loss is a mean over tokens
    assert metrics["groups/advantage_share_negative"] == pytest.approx(share.item(), rel=1e-5)
    assert share > 0


def test_entropies_come_from_the_queue_too(monkeypatch):
    made = trainer("algorithm.adv_estimator=rl_zvp", "+algorithm.objective_options.alpha=0.3")
    made.global_steps = 1
    batch = Batch()
    made._compute_advantage(batch.queue(monkeypatch), metrics={})
    per_token = {
        name: values.view(GROUPS, SIZE, LONGEST)
        for name, values in {"entropies": batch.entropies, "mask": batch.mask}.items()
    }
    expected = batch.rows(objectives.rl_zvp_advantages(CORRECT, **per_token, alpha=0.3))
    torch.testing.assert_close(batch.written["advantages"].to_padded_tensor(0.0), expected, **EXACT)


def test_with_an_estimator_of_verls_own_nothing_changes(monkeypatch):
    made = trainer("algorithm.adv_estimator=grpo")
    batch = Batch()
    meta = batch.queue(monkeypatch)
    made._compute_advantage(meta, metrics={})
    ours = batch.written["advantages"].to_padded_tensor(0.0)
    TRAINER_REGISTRY["sync"].__mro__[2]._compute_advantage(made, meta, metrics={})
    assert torch.equal(ours, batch.written["advantages"].to_padded_tensor(0.0))


def test_the_last_output_of_a_session_decides_for_all_of_them(monkeypatch):
    """Two sessions of a question, two outputs each; the first outputs have other log-probabilities and no reward."""
    logprobs = torch.tensor([[-5.0, -5.0], [-0.2, -0.4], [-7.0, -7.0], [-1.0, -1.5]])
    nested = {
        "response_mask": torch.ones(4, 2, dtype=torch.int64),
        "rm_scores": torch.zeros(4, 2),
        "old_log_probs": logprobs,
    }
    nested = {name: torch.nested.nested_tensor(list(values), layout=torch.jagged) for name, values in nested.items()}
    batch = Batch()
    meta = batch.queue(monkeypatch, **nested, entropy=None, uid=["question"] * 4)
    meta.keys = ["question_0_0", "question_0_1", "question_1_0", "question_1_1"]
    made = trainer("algorithm.adv_estimator=lens")
    made.global_steps = 1
    made._compute_advantage(meta, metrics={})
    of_sessions = objectives.lens_advantages(torch.zeros(1, 2).bool(), torch.tensor([[-0.3, -1.25]]).exp())[0]
    expected = of_sessions.repeat_interleave(2)[:, None].expand(4, 2)
    torch.testing.assert_close(batch.written["advantages"].to_padded_tensor(0.0), expected, **EXACT)


def test_an_objective_with_a_memory_goes_on_from_a_checkpoint(monkeypatch, tmp_path):
    """Two rounds in one trainer, and the second one again in another trainer that has loaded the checkpoint."""
    overrides = ("algorithm.adv_estimator=spo", f"trainer.default_local_dir={tmp_path}")
    batch = Batch()
    problems = {"index": [int(uid.split("-")[1]) for uid in batch.uids[batch.order.numpy()]]}
    problems["data_source"] = ["math"] * GROUPS * SIZE
    meta = batch.queue(monkeypatch, **problems)
    first, second = trainer(*overrides), trainer(*overrides)
    verls = type(first).__mro__[2]
    monkeypatch.setattr(verls, "_save_checkpoint", lambda self: (tmp_path / "global_step_1").mkdir(), raising=False)
    monkeypatch.setattr(verls, "_load_checkpoint", lambda self: setattr(self, "global_steps", 1), raising=False)
    first.global_steps = 1
    first._compute_advantage(meta, metrics={})
    fresh = batch.written["advantages"].to_padded_tensor(0.0)
    first._save_checkpoint()
    first._compute_advantage(meta, metrics={})
    remembered = batch.written["advantages"].to_padded_tensor(0.0)
    assert not torch.allclose(fresh, remembered)
    second._load_checkpoint()
    second._compute_advantage(meta, metrics={})
    assert torch.equal(remembered, batch.written["advantages"].to_padded_tensor(0.0))


def test_problems_that_cannot_be_told_apart_are_refused_but_for_copies_without_a_token():
    with pytest.raises(InputError, match=r"extra_info\.index"):
        plugin.name_problems(["a", "b"], [0, 0], ["math", "math"], [True, True])
    assert plugin.name_problems(["a", "b"], [0, 0], ["math", "math"], [True, False]) == ["math/0", "math/0"]
