"""Every objective with every loss: a step, or a refusal that names the loss."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lens.config.callables import check_loss, check_objective
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.models.loading import load_model
from lens.training.experience import Experience
from lens.training.update import Loss, compute_gradient
from tests.support.configs import composed
from tests.support.gradients import GENERATIONS, MAX_LENGTH, PASS

OBJECTIVES, LOSSES = (sorted(file.stem for file in (CONFIGS / group).glob("*.yaml")) for group in ("objective", "loss"))
LOSSES.remove("base")  # what they share
BY_TOKEN = {"rl_zvp", "token_lens"}
OF_WHOLE_ANSWERS = {"gmpo", "topr"}


@cache
def config_of(group: str, option: str) -> DictConfig:
    """The config with one option; the two groups share no key."""
    return composed(f"{group}={option}")


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(str(tiny_folder))[0]


@pytest.fixture(scope="module")
def rated(model, experience) -> Experience:
    """The experience with all that an objective can ask for."""
    logprobs, entropies = PASS.rate_rollouts(model, experience.rollouts)
    return replace(experience, entropies=entropies, reference_logprobs=logprobs - 0.1, old_logprobs=None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_makes_a_step_with_every_loss_or_the_loss_is_refused_by_name(model, rated, name):
    objective = instantiate(config_of("objective", name).objective)
    token_level = check_objective(objective, GENERATIONS)
    assert token_level == (name in BY_TOKEN)
    weighed = rated.weigh(objective, step=0, max_completion_length=MAX_LENGTH)
    assert (weighed.advantages.dim() == 3) == token_level
    steps = {}
    for other in LOSSES:
        loss = Loss.build(config_of("loss", other))
        if token_level and other in OF_WHOLE_ANSWERS:
            with pytest.raises(ConfigError, match=rf"loss\._target_='{other}_loss'") as error:
                check_loss(loss.surrogate, token_level)
            assert error.value.key == "loss._target_"
            continue
        check_loss(loss.surrogate, token_level)
        metrics = compute_gradient(model, weighed, loss, PASS)
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
        assert metrics["empty_step"] == (norm == 0)
        steps[other] = norm
    # At a ratio of 1 all losses have one gradient.
    assert list(steps.values()) == pytest.approx([steps["reinforce"]] * len(steps), rel=1e-3, abs=1e-6)
    assert name in ("psr", "qae", "pass_at_k") or steps["reinforce"] > 0
