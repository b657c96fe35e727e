"""Adapters against calls that were recorded from the sources of trainers that are not installed here.

The base classes below have the signatures and the names of SkyRL 0.3.0, OpenRLHF 0.11.2, ms-swift 4.6.0 and of NeMo-RL
at 7ea279ab, and nothing of what these compute.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lens import objectives
from lens.integrations import ms_swift, nemo_rl, openrlhf, skyrl
from lens.objectives.inputs import InputError

GROUPS, SIZE, LONGEST = 4, 3, 6
COUNT = GROUPS * SIZE
EXACT = {"atol": 1e-6, "rtol": 0}
CORRECT = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]]).bool()


def made(seed: int = 0) -> SimpleNamespace:
    """Answers in the order of their groups: lengths [B], log-probabilities [B, T], mask [B, T], rewards [B]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (COUNT,), generator=generator)
    logprobs = -2 * torch.rand(COUNT, LONGEST, generator=generator)
    mask = torch.arange(LONGEST) < lengths[:, None]
    means = (logprobs * mask).double().sum(dim=1) / lengths
    confidence = means.exp().float().view(GROUPS, SIZE)
    expected = objectives.lens_advantages(CORRECT, confidence, alpha=0.5).flatten()
    return SimpleNamespace(
        lengths=lengths, logprobs=logprobs, mask=mask, rewards=CORRECT.flatten().float(), expected=expected
    )


def rows(advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return advantages[:, None] * mask


def pretend(monkeypatch, name: str, **contents) -> ModuleType:
    """Let a module of this name, with these contents, be importable."""
    package, _, last = name.rpartition(".")
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    if package:
        setattr(sys.modules.get(package) or pretend(monkeypatch, package), last, module)
    return module


# --- NeMo-RL ---------------------------------------------------------------------------------------------------------


def test_nemo_rl_calls_the_estimator_with_prompts_as_tokens():
    data, order = made(), torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    prompts = torch.arange(GROUPS).repeat_interleave(SIZE)[:, None] * torch.ones(1, 5, dtype=torch.int64)
    estimator = nemo_rl.LensAdvantageEstimator({"name": "lens", "objective_options": {"alpha": 0.5}})
    advantages = estimator.compute_advantage(
        prompt_ids=prompts[order],
        rewards=data.rewards[order],
        mask=data.mask.float()[order],
        repeated_batch={"total_reward": data.rewards[order]},
        logprobs_policy=data.logprobs[order],
        logprobs_reference=None,
    )
    torch.testing.assert_close(advantages, rows(data.expected, data.mask)[order], **EXACT)


@pytest.fixture
def nemo(monkeypatch) -> SimpleNamespace:
    """NeMo-RL's module with the factory of estimators, and another that has bound it by name."""

    def _create_advantage_estimator(master_config):
        return "NeMo-RL's own"

    contents = {_create_advantage_estimator.__name__: _create_advantage_estimator}
    grpo, grpo_sync = (pretend(monkeypatch, f"nemo_rl.algorithms.{name}", **contents) for name in ("grpo", "grpo_sync"))
    nemo_rl.install()
    return SimpleNamespace(grpo=grpo, grpo_sync=grpo_sync)


@pytest.mark.parametrize("module", ["grpo", "grpo_sync"])
def test_nemo_rls_config_chooses_an_objective_by_name(nemo, module):
    create = getattr(nemo, module)._create_advantage_estimator
    of_lens = create({"grpo": {"adv_estimator": {"name": "uniform"}}, "loss_fn": {}})
    assert isinstance(of_lens, nemo_rl.LensAdvantageEstimator)
    as_object = SimpleNamespace(grpo=SimpleNamespace(adv_estimator=SimpleNamespace(name="uniform")), loss_fn=None)
    assert isinstance(create(as_object), nemo_rl.LensAdvantageEstimator)
    for name in ("grpo", "gdpo", "no such estimator"):
        assert create({"grpo": {"adv_estimator": {"name": name}}, "loss_fn": {}}) == "NeMo-RL's own"
    assert create({"grpo": {}, "loss_fn": {}}) == "NeMo-RL's own"


def test_nemo_rls_dynamic_sampling_is_said(nemo):
    config = {"grpo": {"adv_estimator": {"name": "lens"}, "use_dynamic_sampling": True}, "loss_fn": {}}
    with pytest.warns(UserWarning, match=r"grpo\.use_dynamic_sampling=true"):
        nemo.grpo._create_advantage_estimator(config)


# --- SkyRL -----------------------------------------------------------------------------------------------------------


class SkyBatch(dict):
    """As SkyRL's TrainingInputBatch: tensors by name, and an attribute metadata."""


class RayPPOTrainer:
    def __init__(self, cfg):
        self.cfg = cfg

    def compute_advantages_and_returns(self, data):
        data["advantages"] = data["returns"] = torch.full_like(data["rewards"], 7.0)
        return data


def sky_config(**algorithm) -> SimpleNamespace:
    algorithm = {
        "zero_variance_filter": False,
        "use_kl_in_reward": False,
        "policy_loss_type": "regular",
        "dynamic_sampling": SimpleNamespace(type=algorithm.pop("sampling", None)),
        "off_policy_correction": SimpleNamespace(sequence_mask_metric=algorithm.pop("masked", None)),
    } | algorithm
    return SimpleNamespace(
        trainer=SimpleNamespace(algorithm=SimpleNamespace(**algorithm)),
        generator=SimpleNamespace(n_samples_per_prompt=SIZE),
    )


def sky_batch(data: SimpleNamespace, order: torch.Tensor) -> SkyBatch:
    rewards = torch.zeros(data.mask.shape)
    rewards[torch.arange(COUNT), data.lengths - 1] = data.rewards
    batch = SkyBatch(
        rewards=rewards[order],
        response_mask=data.mask.long()[order],
        loss_mask=data.mask.float()[order],
        action_log_probs=data.logprobs[order],
        rollout_logprobs=None,
    )
    batch.metadata = {"uids": [f"q{row // SIZE}" for row in order.tolist()]}
    return batch


def test_skyrls_trainer_gets_the_objectives_advantages():
    data, order = made(), torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    trainer = skyrl.make_trainer_class(RayPPOTrainer, "lens", alpha=0.5)(sky_config())
    batch = trainer.compute_advantages_and_returns(sky_batch(data, order))
    for name in ("advantages", "returns"):
        torch.testing.assert_close(batch[name], rows(data.expected, data.mask)[order], **EXACT)


def test_skyrls_padding_teaches_nothing_and_counts_for_nothing(recwarn):
    """SkyRL pads with copies of the first row, ids of their own and a loss mask of zeros."""
    data = made()
    batch = sky_batch(data, torch.arange(COUNT))
    for name in ("rewards", "response_mask", "action_log_probs"):
        batch[name] = torch.cat([batch[name], batch[name][[0, 0]]])
    batch["loss_mask"] = torch.cat([batch["loss_mask"], torch.zeros(2, LONGEST)])
    batch.metadata = {"uids": [*batch.metadata["uids"], "pad0", "pad1"], "pad_size": 2}
    trainer = skyrl.make_trainer_class(RayPPOTrainer, "lens", alpha=0.5)(sky_config())
    advantages = trainer.compute_advantages_and_returns(batch)["advantages"]
    torch.testing.assert_close(advantages[:-2], rows(data.expected, data.mask), **EXACT)
    assert (advantages[-2:] == 0).all()
    assert not recwarn.list  # such as of groups of one answer


def test_skyrls_confidence_is_of_what_the_policy_sampled():
    """Between an agent's actions stand observations, which the loss mask leaves out."""
    data = made()
    batch = sky_batch(data, torch.arange(COUNT))
    observed = torch.full((COUNT, 2), -50.0)
    batch["action_log_probs"] = torch.cat([data.logprobs, observed], dim=1)
    batch["response_mask"] = torch.cat([batch["response_mask"], torch.ones(COUNT, 2).long()], dim=1)
    batch["loss_mask"] = torch.cat([batch["loss_mask"], torch.zeros(COUNT, 2)], dim=1)
    trainer = skyrl.make_trainer_class(RayPPOTrainer, "lens", alpha=0.5)(sky_config())
    advantages = trainer.compute_advantages_and_returns(batch)["advantages"]
    torch.testing.assert_close(advantages, rows(data.expected, batch["response_mask"]), **EXACT)


def test_a_trajectory_of_several_steps_gets_what_its_last_step_earned():
    data = made()
    batch = sky_batch(data, torch.arange(COUNT).repeat_interleave(2))
    batch["action_log_probs"][::2] = -9.0  # the first steps' do not count
    batch.metadata["is_last_step"] = [False, True] * COUNT
    trainer = skyrl.make_trainer_class(RayPPOTrainer, "lens", alpha=0.5)(sky_config())
    advantages = trainer.compute_advantages_and_returns(batch)["advantages"]
    torch.testing.assert_close(advantages, rows(data.expected, data.mask).repeat_interleave(2, dim=0), **EXACT)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"zero_variance_filter": True}, "zero_variance_filter=true"),
        ({"use_kl_in_reward": True}, "use_kl_in_reward=true"),
        ({"sampling": "filter"}, r"dynamic_sampling\.type=filter"),
        ({"masked": "geometric"}, "sequence_mask_metric=geometric"),
        ({"policy_loss_type": "dual_clip"}, "policy_loss_type=dual_clip"),
    ],
)
def test_what_spoils_an_objective_in_skyrl_is_said(key, said):
    with pytest.warns(UserWarning, match=said):
        skyrl.make_trainer_class(RayPPOTrainer, "lens")(sky_config(**key))


# --- OpenRLHF --------------------------------------------------------------------------------------------------------


class RemoteExperienceMaker:
    def __init__(self, actor, critic, reward_model, initial_model, kl_controller, strategy, tokenizer):
        self.strategy = strategy

    def compute_advantages_and_returns(self, experiences):
        for experience in experiences:
            experience.advantages = experience.returns = torch.full_like(experience.action_log_probs, 7.0)
        return experiences


def maker(monkeypatch, *, filtering: bool = False, dual_clip: float | None = None):
    trainer = pretend(monkeypatch, "openrlhf.trainer.ppo_trainer", RemoteExperienceMaker=RemoteExperienceMaker)
    openrlhf.install("lens", alpha=0.5)
    algo = SimpleNamespace(dynamic_filtering_enable=filtering, kl=SimpleNamespace(init_coef=0.0, use_loss=False))
    rollout, actor = SimpleNamespace(n_samples_per_prompt=SIZE), SimpleNamespace(dual_clip=dual_clip)
    args = SimpleNamespace(algo=algo, rollout=rollout, actor=actor)
    return trainer.RemoteExperienceMaker(None, None, None, None, None, SimpleNamespace(args=args), None)


def test_openrlhfs_experiences_get_the_objectives_advantages(monkeypatch):
    """Micro-batches of other widths and in another order than the prompts."""
    data, order = made(), torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    experiences = []
    for part in order.split(5):
        width = int(data.lengths[part].max())
        experiences.append(
            SimpleNamespace(
                index=part.tolist(),
                rewards=data.rewards[part],
                action_mask=data.mask[part, :width],
                action_log_probs=data.logprobs[part, :width],
            )
        )
    experiences = maker(monkeypatch).compute_advantages_and_returns(experiences)
    for experience in experiences:
        expected = rows(data.expected[experience.index], experience.action_mask)
        torch.testing.assert_close(experience.advantages, expected, **EXACT)
        torch.testing.assert_close(experience.returns, expected, **EXACT)


def test_what_spoils_an_objective_in_openrlhf_is_said(monkeypatch):
    with pytest.warns(UserWarning, match="dynamic_filtering_enable"):
        maker(monkeypatch, filtering=True)
    with pytest.warns(UserWarning, match=r"--actor\.dual_clip=3"):
        maker(monkeypatch, dual_clip=3.0)


# --- ms-swift --------------------------------------------------------------------------------------------------------


class GRPOTrainer:
    """One process's view: the rewards of both, its own batches, and a gather that adds the other process's."""

    def __init__(self, others: dict, **settings):
        defaults = {"dynamic_sample": False, "kl_in_reward": False, "beta": 0.0, "overlong_filter": False}
        defaults |= {"num_generations": SIZE, "num_generations_eval": 1, "dynamic_num_samples": False}
        defaults |= {"rollout_importance_sampling_mode": None, "off_policy_sequence_mask_delta": None}
        defaults |= {"reward_func_names": ["accuracy", "format"]}
        self.args = SimpleNamespace(seed=0, delta=settings.pop("delta", None))
        self.state = SimpleNamespace(global_step=3)
        vars(self).update(defaults | settings)
        self.reward_weights, self.logged, self.others = torch.tensor([1.0, 0.5]), 0, others
        self.model = SimpleNamespace(training=True)
        self.accelerator = SimpleNamespace(gather=self.gather)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        kind = "valid" if values.dtype == torch.bool else "means" if values.is_floating_point() else "lengths"
        return torch.cat([values, self.others[kind]])

    def _compute_advantages(self, samples, rewards_per_func, batch_encoded_inputs):
        self.logged += 1
        return torch.full((len(rewards_per_func),), 7.0)


def swift(monkeypatch, data: SimpleNamespace, *, own: int, verdict: str | None = "accuracy", **settings):
    trainers = pretend(monkeypatch, "swift.rlhf_trainers", GRPOTrainer=GRPOTrainer)
    ms_swift.install("lens", verdict=verdict, alpha=0.5)
    means = (data.logprobs * data.mask).sum(dim=1) / data.lengths
    others = {"means": means[own:], "lengths": data.lengths[own:], "valid": torch.ones(COUNT - own).bool()}
    return trainers.GRPOTrainer(others, **settings)


def swift_batches(data: SimpleNamespace, own: int) -> list[dict]:
    """The batches of a process's own answers, as swift encodes them."""
    return [
        {
            "grpo_batch": SimpleNamespace(
                completion_mask=data.mask[part],
                truncated_mask=torch.zeros(len(part)).bool(),
                old_per_token_logps=data.logprobs[part],
            )
        }
        for part in torch.arange(own).split(4)
    ]


def test_ms_swifts_trainer_gets_the_objectives_advantages_of_all_processes(monkeypatch):
    data, own = made(), 6
    trainer = swift(monkeypatch, data, own=own)
    per_function = torch.stack([data.rewards, torch.full((COUNT,), torch.nan)], dim=1)  # the second says nothing
    advantages = trainer._compute_advantages([None] * own, per_function, swift_batches(data, own))
    torch.testing.assert_close(advantages, data.expected, **EXACT)
    assert trainer.logged == 1  # swift's own metrics of rewards are still written


def test_ms_swift_refuses_requests_of_several_turns(monkeypatch):
    data = made()
    per_function = torch.stack([data.rewards, torch.zeros(COUNT)], dim=1)
    with pytest.raises(InputError, match="several turns"):
        swift(monkeypatch, data, own=COUNT, dynamic_num_samples=True)._compute_advantages([], per_function, [])


def test_in_ms_swift_the_verdict_may_be_any_function(monkeypatch):
    """The other one judges the format; its reward does not make an answer correct, and weighs nothing here."""
    data, own = made(), COUNT
    trainer = swift(monkeypatch, data, own=own, reward_func_names=["format", "accuracy"])
    trainer.reward_weights = torch.tensor([0.0, 1.0])
    per_function = torch.stack([torch.ones(COUNT), data.rewards], dim=1)
    advantages = trainer._compute_advantages([None] * own, per_function, swift_batches(data, own))
    torch.testing.assert_close(advantages, data.expected, **EXACT)
    with pytest.raises(InputError, match=r"verdict='exact': one of the reward functions accuracy, format"):
        swift(monkeypatch, data, own=own, verdict="exact")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"dynamic_sample": True}, "--dynamic_sample"),
        ({"rollout_importance_sampling_mode": "sequence_mask"}, "--rollout_importance_sampling_mode sequence_mask"),
        ({"off_policy_sequence_mask_delta": 0.1}, "--off_policy_sequence_mask_delta"),
        ({"delta": 4.0}, r"--delta 4\.0"),
        ({"verdict": None}, "verdict=None: of the reward functions accuracy, format the first"),
    ],
)
def test_what_spoils_an_objective_in_ms_swift_is_said(monkeypatch, key, said):
    with pytest.warns(UserWarning, match=said):
        swift(monkeypatch, made(), own=COUNT, **key)


def test_an_option_out_of_range_is_refused_before_any_sampling(monkeypatch):
    with pytest.raises(ValueError, match="k=9"):
        skyrl.make_trainer_class(RayPPOTrainer, "pass_at_k", k=9)(sky_config())


def test_an_unknown_objective_is_refused_before_anything_is_made():
    with pytest.raises(InputError, match=r"lense.*uniform"):
        skyrl.make_trainer_class(RayPPOTrainer, "lense")
    with pytest.raises(InputError, match=r"lense.*uniform"):
        nemo_rl.LensAdvantageEstimator({"name": "lense"})


def test_what_an_objective_needs_and_a_trainer_lacks_is_named():
    data = made()
    estimator = nemo_rl.LensAdvantageEstimator({"name": "lens"})
    with pytest.raises(InputError, match="confidence"):
        estimator.compute_advantage(torch.arange(COUNT) // SIZE, data.rewards, data.mask.float())
