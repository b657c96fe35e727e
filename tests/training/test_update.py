"""The update against a naive one, on rollouts sampled once: what changes speed and memory changes nothing else.

The old log-probabilities are perturbed, so that ratios are on both sides of the clip range, and far beyond it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lens.losses.aggregation import token_weights
from lens.models.loading import load_model
from lens.models.logprobs import ForwardPass
from lens.models.packing import split_into_microbatches
from lens.objectives import grpo_advantages, lens_advantages
from lens.training.experience import Experience
from lens.training.group_metrics import measure_groups
from lens.training.update import Loss, compute_gradient, find_non_finite
from tests.support.gradients import (
    GENERATIONS,
    LOSS,
    MAX_LENGTH,
    PASS,
    changed,
    error,
    flat_gradient,
    gradient,
    norms_in_their_own_type,
)
from tests.support.rounding import TOLERANCE

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
INVALID = [13, 15]


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> dict[str, PreTrainedModel]:
    models = {dtype: load_model(str(tiny_folder), dtype=dtype)[0] for dtype in TOLERANCE}
    norms_in_their_own_type(models["float64"])
    return models


@pytest.fixture
def model(models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return models["float32"]


def reordered(experience: Experience, rows: Sequence[int]) -> Experience:
    """The same batch with its completions in another order, whole groups together."""
    rows = torch.tensor(rows)
    questions = rows[::GENERATIONS] // GENERATIONS
    shape = (len(questions), GENERATIONS)
    r = experience.rollouts
    by_row = {f.name: value[rows] for f in fields(r) if isinstance(value := getattr(r, f.name), Tensor)}
    rollouts = replace(
        r,
        prompts=[r.prompts[q] for q in questions],
        finish_reasons=[r.finish_reasons[row] for row in rows],
        texts=[r.texts[row] for row in rows],
        **by_row,
    )
    answers = {
        name: getattr(experience, name).flatten()[rows].view(shape)
        for name in ("correct", "valid", "confidence", "calibrated", "advantages")
    }
    return replace(
        experience,
        rollouts=rollouts,
        levels=[experience.levels[q] for q in questions],
        verdicts=[experience.verdicts[row] for row in rows],
        old_logprobs=experience.old_logprobs[rows],
        reference_logprobs=experience.reference_logprobs[rows],
        **answers,
    )


def padded(experience: Experience, columns: int) -> Experience:
    """The same batch with more padding, filled with what must not be read."""
    r = experience.rollouts
    rows = len(r.lengths)
    rubbish = torch.full((rows, columns), 7)
    rollouts = replace(
        r,
        completion_ids=torch.cat([r.completion_ids, rubbish], dim=1),
        logprobs=torch.cat([r.logprobs, -rubbish.float()], dim=1),
    )
    wider = {
        name: torch.cat([getattr(experience, name), torch.full((rows, columns), torch.nan)], dim=1)
        for name in ("old_logprobs", "reference_logprobs")
    }
    return replace(experience, rollouts=rollouts, **wider)


def naive_loss(model: PreTrainedModel, experience: Experience, loss: Loss) -> tuple[Tensor, dict[str, int]]:
    """The loss from its definition: every completion alone, all of its logits, one token after the other."""
    r, clip = experience.rollouts, loss.surrogate.keywords
    low, high, dual_clip = 1 - clip["epsilon_low"], 1 + clip["epsilon_high"], clip["dual_clip"]
    sums, lengths, counts = [], [], {"low": 0, "high": 0}
    for row, length in enumerate(r.lengths.tolist()):
        question, answer = divmod(row, r.num_generations)
        if not experience.valid[question, answer]:
            continue
        prompt = torch.tensor(r.prompts[question].token_ids)
        completion = r.completion_ids[row, :length]
        logits = model(torch.cat([prompt, completion])[None]).logits[0]
        total = 0.0
        for place, token in enumerate(completion.tolist()):
            log_softmax = (logits[len(prompt) - 1 + place] / PASS.temperature).log_softmax(dim=0)
            logprob, entropy = log_softmax[token], -(log_softmax.exp() * log_softmax).sum()
            advantage = experience.advantages[question, answer].to(logprob)
            ratio = (logprob - experience.old_logprobs[row, place]).exp()
            objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
            if dual_clip is not None and advantage < 0:
                objective = torch.maximum(objective, dual_clip * advantage)
            gap = experience.reference_logprobs[row, place] - logprob
            total = total - objective + loss.beta * (gap.exp() - gap - 1) - loss.entropy_coef * entropy
            counts["low"] += int(ratio < low and advantage < 0)
            counts["high"] += int(ratio > high and advantage > 0)
        sums.append(total)
        lengths.append(length)
    if loss.loss_agg_mode == "token-mean":
        return sum(sums) / sum(lengths), counts
    divisors = {
        "seq-mean-token-sum": [1] * len(sums),
        "seq-mean-token-mean": lengths,
        "seq-mean-token-sum-norm": [loss.max_completion_length] * len(sums),
    }[loss.loss_agg_mode]
    return sum(s / d for s, d in zip(sums, divisors, strict=True)) / len(sums), counts


# --- what must not matter ---


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("beta", "dual_clip", "entropy_coef"), [(0.0, None, 0.0), (0.1, 1.5, 0.0), (0.0, None, 0.5)])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_the_naive_loss(models, experience, mode, beta, dual_clip, entropy_coef, dtype):
    model = models[dtype]
    choices = {"beta": beta, "dual_clip": dual_clip, "entropy_coef": entropy_coef}
    loss, forward_pass = changed(loss_agg_mode=mode, max_tokens_per_microbatch=80, **choices)
    metrics = compute_gradient(model, experience, loss, forward_pass)
    actual = flat_gradient(model)
    model.zero_grad()
    expected, counts = naive_loss(model, experience, loss)
    expected.backward()
    assert error(actual, flat_gradient(model)) < TOLERANCE[dtype]
    assert metrics["loss"] == pytest.approx(expected.item(), abs=TOLERANCE[dtype])  # a sum of terms of size 1
    assert counts["low"] > 0 and counts["high"] > 0
    for side, count in counts.items():
        assert metrics[f"clip_ratio/{side}_mean"] * metrics["tokens/trained"] == pytest.approx(count)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_without_old_log_probabilities_the_policy_is_its_own(models, experience, dtype):
    model = models[dtype]
    known = replace(experience, old_logprobs=PASS.rate_rollouts(model, experience.rollouts)[0])
    expected = gradient(model, known)
    metrics = compute_gradient(model, replace(experience, old_logprobs=None), LOSS, PASS)
    assert error(flat_gradient(model), expected) < TOLERANCE["float32"]  # the recomputed ones are float32
    assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", MODES)
def test_microbatches_order_and_padding_change_nothing(models, experience, mode, dtype):
    model = models[dtype]
    whole = replace(LOSS, loss_agg_mode=mode, beta=0.1)
    largest = max(len(p.token_ids) for p in experience.rollouts.prompts) + MAX_LENGTH
    expected = gradient(model, experience, whole)

    def difference(experience: Experience, **choices: int) -> float:
        return error(gradient(model, experience, whole, replace(PASS, **choices)), expected)

    questions = reordered(experience, [*range(8, 12), *range(4), *range(12, 16), *range(4, 8)])
    answers = reordered(experience, [2, 0, 3, 1, 5, 4, 7, 6, 11, 10, 9, 8, 14, 12, 13, 15])
    wider = padded(experience, 9)
    differences = [
        difference(experience, max_tokens_per_microbatch=largest),
        difference(experience, max_tokens_per_microbatch=3 * largest, logits_chunk_size=1),
        difference(questions),
        difference(questions, max_tokens_per_microbatch=largest),
        difference(answers, max_tokens_per_microbatch=2 * largest),
        difference(wider),
        difference(wider, max_tokens_per_microbatch=largest, logits_chunk_size=1000),
    ]
    assert max(differences) < TOLERANCE[dtype]


def test_many_micro_batches_in_bfloat16_add_up_without_loss(tiny_folder, experience):
    model, _ = load_model(str(tiny_folder), dtype="bfloat16")
    loss, forward_pass = changed(beta=0.1, max_tokens_per_microbatch=40)
    rows = loss.teaches(experience).nonzero().squeeze(1).tolist()
    total, parts = 0, list(split_into_microbatches(model, experience.rollouts, rows, 40))
    for packs in parts:
        model.zero_grad()
        part = torch.tensor([row for pack in packs for row in pack])
        loss.accumulate(model, experience, forward_pass, part, loss.weights(experience))
        total = total + flat_gradient(model).double()
    model.zero_grad()
    compute_gradient(model, experience, loss, forward_pass)
    assert len(parts) > 8
    # A sum in bfloat16 is off by 2^-9 of each partial sum.
    assert error(flat_gradient(model).double(), total) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("max_tokens", [80, 10_000])
def test_layers_that_are_computed_again_have_the_same_gradient(models, experience, dtype, max_tokens):
    model = models[dtype]
    loss, forward_pass = changed(beta=0.1, entropy_coef=0.1, max_tokens_per_microbatch=max_tokens)
    passes = []
    hook = model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    try:
        expected, once = gradient(model, experience, loss, forward_pass), len(passes)
        again = gradient(model, experience, loss, replace(forward_pass, gradient_checkpointing=True))
    finally:
        hook.remove()
    assert len(passes) == 3 * once
    assert error(again, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_measuring_the_share_does_not_change_the_gradient(model, experience, beta):
    loss = replace(LOSS, beta=beta)
    plain = compute_gradient(model, experience, loss, PASS)
    expected = flat_gradient(model)
    shared = compute_gradient(model, experience, loss, PASS, compare_groups=True)
    assert error(flat_gradient(model), expected) < TOLERANCE["float32"]
    for name, value in plain.items():
        assert shared[name] == pytest.approx(value, rel=TOLERANCE["float32"], abs=TOLERANCE["float32"])
    assert set(shared) - set(plain) == {"groups/grad_norm_share_negative", "groups/grad_cosine"}


# --- what must ---


def rows_seen(
    model: PreTrainedModel, experience: Experience, loss: Loss = LOSS, forward_pass: ForwardPass = PASS, **choices: bool
) -> int:
    """Completions that went through the model in one update."""
    starts = []

    def count(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        starts.append(len(kwargs["sharing"].places))

    hook = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        compute_gradient(model, experience, loss, forward_pass, **choices)
    finally:
        hook.remove()
    return sum(starts)


def test_completions_without_advantage_cost_nothing(model, experience):
    # Of 16, the positive group has no advantage, and two answers of the last group are invalid.
    assert rows_seen(model, experience) == 10
    assert rows_seen(model, experience, compare_groups=True) == 10
    assert rows_seen(model, experience, *changed(max_tokens_per_microbatch=50)) == 10
    only_mixed = replace(experience, advantages=grpo_advantages(experience.correct, valid=experience.valid))
    assert rows_seen(model, only_mixed) == 6
    metrics = compute_gradient(model, only_mixed, LOSS, PASS)
    trained = [0, 1, 2, 3, 12, 14]
    assert metrics["completions/trained"] == 6
    assert metrics["tokens/trained"] == experience.rollouts.lengths[trained].sum()


def test_with_a_kl_term_or_an_entropy_bonus_every_valid_completion_is_trained_on(model, experience):
    assert rows_seen(model, experience, replace(LOSS, beta=0.1)) == 14
    assert rows_seen(model, experience, replace(LOSS, entropy_coef=0.1)) == 14


@pytest.mark.parametrize("mode", MODES)
def test_the_denominator_counts_completions_without_advantage(model, experience, mode):
    # Without the positive group, each of the others counts for more, by the ratio of the denominators and no other.
    loss = replace(LOSS, loss_agg_mode=mode)
    fewer = experience.split(2)[0]  # a mixed and a negative group
    more = reordered(experience, range(12))  # and the positive one
    lengths = experience.rollouts.lengths
    factor = (lengths[:8].sum() / lengths[:12].sum()).item() if mode == "token-mean" else 8 / 12
    assert error(gradient(model, more, loss), factor * gradient(model, fewer, loss)) < TOLERANCE["float32"]


def test_importance_weights_scale_each_tokens_gradient_and_are_measured(model, experience):
    mask = experience.rollouts.mask
    trainer = experience.rollouts.logprobs + 0.3 * mask
    weighed = replace(experience, trainer_logprobs=trainer, importance=torch.full(mask.shape, 0.5))
    assert error(gradient(model, weighed), 0.5 * gradient(model, experience)) < TOLERANCE["float32"]
    metrics = measure_groups(weighed, LOSS.weights(weighed))
    assert metrics["sampling/logp_difference_max"] == pytest.approx(0.3, abs=1e-5)
    assert metrics["sampling/importance_ratio_mean"] == pytest.approx(math.exp(0.3), rel=1e-5)
    assert metrics["sampling/importance_weight_mean"] == pytest.approx(0.5)
    assert not any(name.startswith("sampling/") for name in measure_groups(experience, LOSS.weights(experience)))


def test_autocast_is_near_the_full_precision_and_no_more(model, experience):
    difference = error(gradient(model, experience, *changed(autocast="bfloat16")), gradient(model, experience))
    assert 1e-4 < difference < 0.1


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_those_of_valid_completions(experience, mode):
    loss = replace(LOSS, loss_agg_mode=mode)
    valid = [row for row in range(16) if row not in INVALID]
    weights = loss.weights(experience)
    lengths = experience.rollouts.lengths[valid]
    assert torch.equal(weights[valid], token_weights(lengths, mode, max_completion_length=MAX_LENGTH))
    assert (weights[INVALID] == 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_invalid_answers_teach_nothing_whatever_their_advantage(model, experience, beta):
    advantages = experience.advantages.flatten().clone()
    assert (advantages[INVALID] == 0).all()
    advantages[INVALID] = 100.0
    loss = replace(LOSS, beta=beta)
    expected = gradient(model, experience, loss)
    assert error(gradient(model, replace(experience, advantages=advantages.view(4, 4)), loss), expected) == 0


def test_alpha_weighs_advantages_of_negative_groups_and_nothing_else(models, experience):
    model = models["float64"]

    def of_alpha(alpha: float, groups: str = "all") -> Tensor:
        advantages = lens_advantages(
            experience.correct, experience.confidence, alpha=alpha, groups=groups, valid=experience.valid
        )
        return gradient(model, replace(experience, advantages=advantages))

    of_mixed, once, thrice = of_alpha(1.0, groups="mixed"), of_alpha(1.0), of_alpha(3.0)
    assert error(of_alpha(0.0), of_mixed) == 0
    assert error(thrice - of_mixed, 3 * (once - of_mixed)) < TOLERANCE["float32"]  # that of the advantages
    assert (once - of_mixed).norm() > 1e-3


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_share_is_that_of_gradients_computed_apart(models, experience, dtype):
    model = models[dtype]
    negative = torch.tensor([[False], [True], [False], [False]])
    of_negative = gradient(model, replace(experience, advantages=experience.advantages * negative))
    of_others = gradient(model, replace(experience, advantages=experience.advantages * ~negative))
    metrics = compute_gradient(model, experience, LOSS, PASS, compare_groups=True)
    share = of_negative.norm() / (of_negative.norm() + of_others.norm())
    cosine = torch.nn.functional.cosine_similarity(of_negative, of_others, dim=0)
    assert 0.01 < share < 0.99
    assert metrics["groups/grad_norm_share_negative"] == pytest.approx(share.item(), rel=TOLERANCE["float32"])
    assert metrics["groups/grad_cosine"] == pytest.approx(cosine.item(), abs=TOLERANCE["float32"])
    assert error(flat_gradient(model), of_negative + of_others) < TOLERANCE[dtype]


def test_the_share_is_zero_or_one_where_one_side_is_silent(model, experience):
    negative = torch.tensor([[False], [True], [False], [False]])
    for kept, share in ((negative, 1.0), (~negative, 0.0)):
        metrics = compute_gradient(
            model, replace(experience, advantages=experience.advantages * kept), LOSS, PASS, compare_groups=True
        )
        assert metrics["groups/grad_norm_share_negative"] == share
        assert metrics["groups/grad_cosine"] == 0


@pytest.mark.parametrize("share", [False, True])
def test_a_batch_without_advantages_has_a_gradient_of_zero(model, experience, share):
    assert compute_gradient(model, experience, LOSS, PASS)["empty_step"] == 0
    empty = replace(experience, advantages=torch.zeros(4, 4))
    assert rows_seen(model, empty, compare_groups=share) == 0
    metrics = compute_gradient(model, empty, LOSS, PASS, compare_groups=share)
    assert metrics["empty_step"] == 1 and metrics["loss"] == 0 and metrics["completions/trained"] == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())
    model.zero_grad()
    compute_gradient(model, empty, LOSS, PASS, compare_groups=share)
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_frozen_parameters_get_no_gradient(tiny, experience):
    model, _ = tiny
    expected = gradient(model, experience)
    model.zero_grad()
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    compute_gradient(model, experience, LOSS, PASS, compare_groups=True)
    assert frozen.grad is None
    rest = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    assert error(rest, expected[frozen.numel() :]) < TOLERANCE["float32"]


def test_a_completion_that_fits_no_microbatch_is_refused(model, experience):
    with pytest.raises(ValueError, match=r"trainer\.memory\.max_tokens_per_microbatch=12"):
        compute_gradient(model, experience, *changed(max_tokens_per_microbatch=12))


@pytest.mark.parametrize("cause", ["advantage", "old log-probability", "weight"])
def test_the_micro_batch_that_is_not_finite_is_found(tiny_folder, experience, cause):
    model, _ = load_model(str(tiny_folder))
    loss, forward_pass = changed(max_tokens_per_microbatch=60)
    assert find_non_finite(model, experience, loss, forward_pass).endswith("is not finite, though each of them is")
    culprit = 2  # the answer's row, of the first question
    if cause == "weight":
        with torch.no_grad():
            model.get_output_embeddings().weight[0] = torch.nan
    elif cause == "advantage":
        advantages = experience.advantages.clone()
        advantages[0, culprit] = -torch.inf
        experience = replace(experience, advantages=advantages)
    else:
        old = experience.old_logprobs.clone()
        old[culprit, 0] = torch.nan
        experience = replace(experience, old_logprobs=old)
    found = re.fullmatch(
        r"micro-batch (\d+) of (\d+) \((\d+) answers to (.+)\) has loss (\S+) and gradient norm (\S+)",
        find_non_finite(model, experience, loss, forward_pass),
    )
    assert found
    assert 1 <= int(found[1]) <= int(found[2]) > 1
    assert not all(math.isfinite(float(found[number])) for number in (5, 6))
    if cause != "weight":
        assert experience.rollouts.prompts[0].problem_id in found[4]
        assert int(found[3]) < 16
