"""LENS inside verl: the real registry, compute_advantage, trainers and configs, in an environment of its own.

`make test-verl` makes the environment and runs this.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed here: make test-verl")

import transfer_queue
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, get_trainer_cls

from lens import objectives
from lens.integrations import verl as plugin
from lens.integrations.names import NAMES, make_objective
from lens.objectives.inputs import InputError

GROUPS, SIZE, LONGEST = 6, 4, 5
EXACT = {"atol": 1e-6, "rtol": 0}
# The kinds of groups, one a row: negative, negative, mixed, mixed, mixed, positive.
CORRECT = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
ON_VERDICTS = {
    "dr_grpo": lambda: objectives.grpo_advantages(CORRECT, scale_by_std=False),
    "max_rl": lambda: objectives.max_rl_advantages(CORRECT),
    "ngrpo": lambda: objectives.ngrpo_advantages(CORRECT),
    "pass_at_k": lambda: objectives.pass_at_k_advantages(CORRECT, k=4),
    "qae": lambda: objectives.qae_advantages(CORRECT),
    "uniform": lambda: objectives.uniform_advantages(CORRECT),
    "w_reinforce": lambda: objectives.w_reinforce_advantages(CORRECT),
}


def config(*overrides: str):
    """verl's config, composed by verl's own Hydra files."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", list(overrides))


def trainer(*overrides: str, mode: str = "sync"):
    """A trainer of verl's before it has touched Ray; it warns of nothing but what a test is about."""
    quiet = ("actor_rollout_ref.actor.clip_ratio_c=1e9", "actor_rollout_ref.rollout.n=4")
    return get_trainer_cls(mode)(config(f"trainer.v1.trainer_mode={mode}", *quiet, *overrides))


class Batch:
    """B answers in shuffled order, as verl has them: padded tensors and ids, and the same as [Q, G]."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = GROUPS * SIZE
        self.order = torch.randperm(count, generator=generator)
        self.lengths = torch.randint(1, LONGEST + 1, (count,), generator=generator)
        self.logprobs = -2 * torch.rand(count, LONGEST, generator=generator)
        self.entropies = 3 * torch.rand(count, LONGEST, generator=generator)
        self.mask = torch.arange(LONGEST) < self.lengths[:, None]
        self.uids = np.repeat([f"question-{q}" for q in range(GROUPS)], SIZE).astype(object)
        means = (self.logprobs * self.mask).double().sum(dim=1) / self.lengths
        self.confidence = means.exp().float().view(GROUPS, SIZE)

    def proto(self) -> DataProto:
        """The rows as compute_advantage takes them; the reward lies on the last token."""
        rewards = torch.zeros(self.mask.shape)
        rewards[torch.arange(len(rewards)), self.lengths - 1] = CORRECT.flatten().float()
        tensors = {"token_level_rewards": rewards, "response_mask": self.mask.long()}
        shuffled = {name: values[self.order] for name, values in tensors.items()}
        return DataProto.from_dict(tensors=shuffled, non_tensors={"uid": self.uids[self.order.numpy()]})

    def rows(self, advantages: torch.Tensor) -> torch.Tensor:
        """Advantages [Q, G] or [Q, G, T] as rows [B, T] in this order, 0 outside the mask."""
        flat = advantages.reshape(GROUPS * SIZE, -1)
        return (flat.expand(-1, LONGEST) * self.mask)[self.order]

    def queue(self, monkeypatch, **fields) -> SimpleNamespace:
        """verl's queue, holding this batch: nested tensors, as its agents put them there. Returns the batch's meta."""
        proto = self.proto()
        lengths = self.lengths[self.order].tolist()
        scores = proto.batch["token_level_rewards"]
        padded = {"response_mask": proto.batch["response_mask"], "rm_scores": scores}
        padded |= {"old_log_probs": self.logprobs[self.order], "entropy": self.entropies[self.order]}
        held = {
            name: torch.nested.nested_tensor([v[:n] for v, n in zip(values, lengths, strict=True)], layout=torch.jagged)
            for name, values in padded.items()
        }
        held["uid"] = proto.non_tensor_batch["uid"].tolist()
        held |= fields
        held = {name: values for name, values in held.items() if values is not None}
        self.written = {}

        def get(keys, partition_id, select_fields):
            return TensorDict({k: held[k] for k in select_fields if k in held}, batch_size=len(keys))

        def put(keys, partition_id, fields):
            self.written = fields

        monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
        monkeypatch.setattr(transfer_queue, "kv_batch_put", put)
        keys = [f"{uid}_{row}_0" for row, uid in enumerate(held["uid"])]
        return SimpleNamespace(keys=keys, partition_id="train")


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
    made._compute_advantage(batch.queue(monkeypatch), metrics={})
    expected = batch.rows(objectives.lens_advantages(CORRECT, batch.confidence))
    torch.testing.assert_close(batch.written["advantages"].to_padded_tensor(0.0), expected, **EXACT)
    assert (expected[:, 0] != 0).sum() > SIZE  # negative groups teach, and mixed ones


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


# --- what is said before a run ---------------------------------------------------------------------------------------

REFUSED = {
    "options": (["algorithm.adv_estimator=lens", "+algorithm.objective_options.alfa=1"], "alfa"),
    "log-probabilities": (
        [
            "algorithm.adv_estimator=lens",
            "algorithm.rollout_correction.bypass_mode=true",
            "actor_rollout_ref.rollout.calculate_log_probs=false",
        ],
        "calculate_log_probs=true",
    ),
    "entropies": (
        ["algorithm.adv_estimator=rl_zvp", "algorithm.rollout_correction.bypass_mode=true"],
        "bypass_mode=false",
    ),
    "a reference": (["algorithm.adv_estimator=ace"], "use_kl_loss=true"),
    "an unknown objective": (["algorithm.adv_estimator=lense"], "lense.*uniform"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_while_the_trainer_is_made(what):
    overrides, match = REFUSED[what]
    with pytest.raises(ValueError, match=match):
        trainer(*overrides)


PITFALLS = {
    "algorithm.filter_groups.enable": ["algorithm.filter_groups.enable=true"],
    "actor_rollout_ref.actor.clip_ratio_c": ["actor_rollout_ref.actor.clip_ratio_c=3.0"],
    "algorithm.rollout_correction.rollout_rs": ["algorithm.rollout_correction.rollout_rs=seq_mean_k1"],
    "actor_rollout_ref.rollout.n": ["actor_rollout_ref.rollout.n=1"],
    "algorithm.norm_adv_by_std_in_grpo": ["algorithm.norm_adv_by_std_in_grpo=false"],
    "algorithm.use_kl_in_reward": ["algorithm.use_kl_in_reward=true"],
}


@pytest.mark.parametrize("key", PITFALLS)
def test_what_spoils_an_objective_is_said_by_the_name_of_its_key(key):
    with pytest.warns(UserWarning, match=rf"{key}="):
        trainer("algorithm.adv_estimator=lens", *PITFALLS[key])


def test_a_config_without_pitfalls_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugin.check_config(
            config("actor_rollout_ref.actor.clip_ratio_c=1e9", "actor_rollout_ref.rollout.n=4"), make_objective("lens")
        )
