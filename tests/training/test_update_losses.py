"""The update with each surrogate loss: what holds for all, and what advantages of tokens and NaN change.

At a ratio of 1 theory has every loss agree with REINFORCE, whatever loss_agg_mode is: each mode gives all tokens of an
answer one weight. Importance weights of single tokens are the exception: a geometric mean knows their mean alone.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lens.losses import cispo_loss, gmpo_loss, gspo_loss, ppo_clip_loss, reinforce_loss, sapo_loss, topr_loss
from lens.models.loading import load_model
from lens.training.experience import Experience
from lens.training.update import Loss, compute_gradient, token_advantages
from tests.support.configs import composed
from tests.support.gradients import GENERATIONS, LOSS, PASS, error, flat_gradient, gradient, norms_in_their_own_type
from tests.support.rounding import TOLERANCE

LOSSES = {
    "ppo_clip": ppo_clip_loss,
    "reinforce": reinforce_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
    "gmpo": gmpo_loss,
    "sapo": sapo_loss,
    "topr": topr_loss,
}
OF_TOKENS = sorted(LOSSES.keys() - {"gmpo", "topr"})
MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
WIDE = {"gspo": {"epsilon_low": 0.1, "epsilon_high": 0.1}}  # the noise of these tests would clip every answer


@pytest.fixture(scope="module")
def model(tiny_folder) -> PreTrainedModel:
    model = load_model(str(tiny_folder), dtype="float64")[0]
    norms_in_their_own_type(model)
    return model


@pytest.fixture(scope="module")
def first(experience) -> Experience:
    """The first update of a round: the policy is the one that sampled."""
    return replace(experience, old_logprobs=None)


def of(name: str, **changes: Any) -> Loss:
    """The loss of that name; of LOSS are the other settings."""
    return replace(LOSS, surrogate=partial(LOSSES[name], **WIDE.get(name, {})), **changes)


# --- at a ratio of 1, and off it ---


@pytest.mark.parametrize("mode", MODES)
def test_every_loss_has_reinforces_gradient_in_the_first_update(model, first, mode):
    expected = gradient(model, first, of("reinforce", loss_agg_mode=mode))
    for name in LOSSES:
        metrics = compute_gradient(model, first, of(name, loss_agg_mode=mode), PASS)
        assert error(flat_gradient(model), expected) < TOLERANCE["float64"], name
        assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0


def test_importance_weights_are_each_tokens_but_for_the_geometric_mean(model, first):
    mask = first.rollouts.mask
    weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    means = ((weights * mask).sum(dim=1) / mask.sum(dim=1))[:, None].expand(mask.shape)
    single, averaged = (replace(first, importance=each) for each in (weights, means))
    expected = gradient(model, single, of("reinforce"))
    for name in LOSSES.keys() - {"gmpo"}:
        assert error(gradient(model, single, of(name)), expected) < TOLERANCE["float64"], name
    geometric = gradient(model, single, of("gmpo"))
    assert error(geometric, expected) > 0.01
    assert error(geometric, gradient(model, averaged, of("reinforce"))) < TOLERANCE["float32"]  # that of the weights


def test_off_the_old_policy_all_losses_differ(model, experience):
    gradients = {name: gradient(model, experience, of(name)) for name in LOSSES}
    for a, b in combinations(LOSSES, 2):
        assert error(gradients[a], gradients[b]) > 0.01, (a, b)


@pytest.mark.parametrize("name", LOSSES)
def test_the_sum_of_micro_batches_is_one_batch(model, experience, name):
    expected = gradient(model, experience, of(name))
    for tokens in (40, 80):
        split = gradient(model, experience, of(name), replace(PASS, max_tokens_per_microbatch=tokens))
        assert error(split, expected) < TOLERANCE["float64"]


def ratios_of(model: PreTrainedModel, experience: Experience) -> Tensor:
    """log pi - log pi_old, [Q*G, T]."""
    return PASS.rate_rollouts(model, experience.rollouts)[0] - experience.old_logprobs


@pytest.mark.parametrize("name", ["gmpo", "topr", "cispo"])
def test_clipped_tokens_are_counted_by_the_sign_of_their_advantage(model, experience, name):
    log_ratios, mask = ratios_of(model, experience), experience.rollouts.mask
    advantages = token_advantages(experience)
    if name == "gmpo":
        beyond = log_ratios.abs() > 0.4
        beyond &= log_ratios.sign() == advantages.sign()
        loss = of(name)
    elif name == "topr":
        beyond = ((log_ratios * mask).sum(dim=1, keepdim=True) > 0) & (advantages < 0)
        loss = of(name)
    else:
        beyond = (log_ratios.exp() < 0.8) | (log_ratios.exp() > 1.2)
        loss = replace(LOSS, surrogate=partial(cispo_loss, ratio_min=0.8, ratio_max=1.2))
    metrics = compute_gradient(model, experience, loss, PASS)
    for side, sign in (("low", -1), ("high", 1)):
        count = (beyond & mask & (advantages.sign() == sign)).sum().item()
        assert metrics[f"clip_ratio/{side}_mean"] * metrics["tokens/trained"] == pytest.approx(count)
        assert count > 0 or (name, side) == ("topr", "high")


# --- advantages of tokens ---


def of_each_token(experience: Experience, factors: Tensor | float = 1.0) -> Experience:
    """The same advantages with a value for each token, times a factor, and rubbish beyond the answers' ends."""
    mask = experience.rollouts.mask
    tokens = (experience.advantages.flatten()[:, None] * factors * torch.ones(mask.shape)).masked_fill(~mask, torch.nan)
    return replace(experience, advantages=tokens.view(-1, GENERATIONS, mask.shape[1]))


@pytest.mark.parametrize("name", OF_TOKENS)
def test_equal_advantages_of_tokens_are_those_of_the_answer(model, experience, name):
    tokens = of_each_token(experience)
    assert torch.equal(gradient(model, tokens, of(name)), gradient(model, experience, of(name)))


@pytest.mark.parametrize("name", ["gmpo", "topr"])
def test_a_loss_of_whole_answers_is_not_given_advantages_of_tokens(model, experience, name):
    varied = of_each_token(experience, torch.linspace(0.5, 1.5, experience.rollouts.mask.shape[1]))
    with pytest.raises(ValueError, match="one advantage for each answer"):
        gradient(model, varied, of(name))


@pytest.mark.parametrize("name", OF_TOKENS)
def test_each_token_is_moved_by_its_own_advantage(model, first, name):
    # At a ratio of 1 a token's gradient is its advantage times its weight, so either may carry the factor.
    factors = torch.rand(first.rollouts.mask.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    weighed = replace(first, importance=factors)
    expected = gradient(model, weighed, of(name))
    assert error(gradient(model, of_each_token(first, factors), of(name)), expected) < TOLERANCE["float32"]


def test_an_answer_teaches_if_any_of_its_tokens_has_an_advantage(experience):
    tokens = torch.zeros(4, GENERATIONS, experience.rollouts.mask.shape[1])
    tokens[0, 1, 0], tokens[2, 3, 1], tokens[3, 1, 0] = 1.0, -1.0, 1.0  # the last answer is not valid
    lengths = experience.rollouts.lengths
    assert lengths[1] >= 1 and lengths[11] >= 2
    tokens[3, 2, lengths[14] :] = 1.0  # beyond the answer's end
    some = replace(experience, advantages=tokens)
    assert LOSS.teaches(some).nonzero().flatten().tolist() == [1, 11]
    assert torch.equal(LOSS.weights(some), LOSS.weights(experience))


# --- answers that an objective leaves out ---


def without(experience: Experience, rows: list[int], *, of_tokens: bool = False) -> Experience:
    advantages = experience.advantages.clone()
    advantages.view(-1)[rows] = torch.nan
    left = replace(experience, advantages=advantages)
    return of_each_token(left) if of_tokens else left


@pytest.mark.parametrize("of_tokens", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_an_answer_whose_advantage_is_nan_is_out_of_the_batch(model, experience, mode, beta, of_tokens):
    rows = [0, 5, 9]
    loss = replace(LOSS, loss_agg_mode=mode, beta=beta)
    left = without(experience, rows, of_tokens=of_tokens)
    valid = experience.valid.clone()
    valid.view(-1)[rows] = False
    assert torch.equal(loss.weights(left), loss.weights(replace(experience, valid=valid)))
    assert not loss.teaches(left)[rows].any()
    actual = gradient(model, left, loss)
    assert actual.isfinite().all()
    assert torch.equal(actual, gradient(model, replace(experience, valid=valid), loss))


def test_an_answer_that_is_left_out_still_makes_its_group_what_it_is(model, experience):
    right = [0, 14]  # the only right answers of the two mixed groups, which stay mixed
    assert experience.correct.flatten()[right].all()
    left = without(experience, right)
    negative = torch.tensor([[False], [True], [False], [False]])
    sides = [gradient(model, replace(left, advantages=left.advantages * kept)).norm() for kept in (negative, ~negative)]
    metrics = compute_gradient(model, left, LOSS, PASS, compare_groups=True)
    share = metrics["groups/grad_norm_share_negative"]
    assert share == pytest.approx((sides[0] / sum(sides)).item(), rel=TOLERANCE["float64"])
    assert min(sides) > 1e-3


# --- from a config ---


@pytest.mark.parametrize("name", LOSSES)
def test_a_config_makes_the_loss_that_it_names(name):
    loss = Loss.build(composed(f"loss={name}", "loss.beta=0.5"))
    assert loss.surrogate.func is LOSSES[name]
    assert loss.loss_agg_mode == "seq-mean-token-mean" and loss.beta == 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_the_file_of_a_loss_has_every_option_at_its_default(name):
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert Loss.build(composed(f"loss={name}")).surrogate.keywords == defaults
