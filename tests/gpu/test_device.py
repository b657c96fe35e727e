"""What has to hold on a GPU as it does on a CPU. Where there is no GPU, the same tests run on the CPU.

``make gpu-test`` runs them on a machine with a GPU. They need neither vLLM nor a network.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from lens.files import CONFIGS
from lens.models.architectures import make_random_model
from lens.models.flex_attention import runs_here
from lens.models.loading import load_model
from lens.models.packing import share_prompts
from lens.models.probe import check_forward_pass, make_probe
from lens.models.shared_prompts import FLEX_SHARED_PROMPTS, SHARED_PROMPTS
from lens.problems.prompts import Prompt
from lens.training.policy import make_optimizer
from tests.support.command_line import assert_same_end, environment, kept_weights, metrics_of, run, training
from tests.support.configs import composed
from tests.support.gradients import LOSS, MAX_LENGTH, PASS, error, gradient
from tests.support.losses import plain_pass
from tests.support.models import MODELS, alone, gradients_of
from tests.support.rollouts import ALL, LENGTHS, PROMPT_LENGTHS, random_rollouts

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
OBJECTIVES = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))
AGREEMENT = 1e-4  # relative difference of what two devices compute in float32


@pytest.fixture(autouse=True, scope="module")
def exact_products():
    """Products of float32 are not rounded to TF32, so that a GPU's are comparable with a CPU's."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@functools.cache
def settings_of(objective: str) -> DictConfig:
    return composed(f"objective={objective}", "optimizer.learning_rate=1e-3")


@pytest.fixture(scope="module")
def models(tiny_folder) -> dict[torch.device, PreTrainedModel]:
    """The tiny model on both devices."""
    return {device: load_model(str(tiny_folder))[0].to(device) for device in (CPU, DEVICE)}


@pytest.fixture(scope="module")
def rated(models, experience):
    """The experience with all that an objective can ask for."""
    logprobs, entropies = PASS.rate_rollouts(models[CPU], experience.rollouts)
    return replace(experience, entropies=entropies, reference_logprobs=logprobs - 0.1, old_logprobs=None)


def test_log_probabilities_and_entropies_are_those_of_the_cpu(models, experience):
    found = [PASS.rate_rollouts(models[device], experience.rollouts) for device in (CPU, DEVICE)]
    for there, here in zip(*found, strict=True):
        assert there.abs().max() > 0
        torch.testing.assert_close(here.to(CPU), there, atol=AGREEMENT, rtol=AGREEMENT)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_of_every_objective_is_that_of_the_cpu(models, rated, name):
    objective = instantiate(settings_of(name).objective)
    weighed = rated.weigh(objective, step=0, max_completion_length=MAX_LENGTH)
    there, here = (gradient(models[device], weighed, replace(LOSS, beta=0.0)).to(CPU) for device in (CPU, DEVICE))
    if not there.any():
        assert name in ("psr", "qae", "pass_at_k") and not here.any()  # no answer of this batch teaches
    else:
        assert error(here, there) < AGREEMENT


def test_the_first_update_is_that_of_the_cpu(tiny_folder, experience):
    weights = []
    for device in (CPU, DEVICE):
        model = load_model(str(tiny_folder))[0].to(device)
        before = flat(model)
        optimizer = make_optimizer(model, settings_of("lens").optimizer)
        gradient(model, experience, LOSS)
        # AdamW's first step is the sign of each gradient, and rounding decides that of the smallest ones: leave them.
        for parameter in model.parameters():
            parameter.grad[parameter.grad.abs() < 1e-3 * parameter.grad.abs().max()] = 0
        optimizer.step()
        weights.append(flat(model))
    assert (weights[0] - before).abs().max() > 5e-4
    assert (weights[1] - weights[0]).norm() < AGREEMENT * weights[0].norm()


def flat(model: PreTrainedModel) -> Tensor:
    """All weights of a model, on the CPU."""
    return torch.cat([parameter.detach().flatten().to(CPU) for parameter in model.parameters()])


def kernels() -> list[object]:
    """The attentions over shared prompts, and flash attention over copies; a reason for each that is not here."""
    no_flex = pytest.mark.skipif(not runs_here(), reason="FlexAttention has a backward pass only on a GPU with Triton")
    flash = DEVICE.type == "cuda" and is_flash_attn_2_available()
    no_flash = pytest.mark.skipif(not flash, reason="flash attention needs a GPU and the package flash-attn")
    return [
        pytest.param(SHARED_PROMPTS, "float32"),
        pytest.param(FLEX_SHARED_PROMPTS, "float32", marks=no_flex),
        pytest.param(SHARED_PROMPTS, "bfloat16"),
        pytest.param(FLEX_SHARED_PROMPTS, "bfloat16", marks=no_flex),
        pytest.param("flash_attention_2", "bfloat16", marks=no_flash),
    ]


@pytest.mark.parametrize("kind", ["fewer key heads", "a sliding window"])
@pytest.mark.parametrize("attention, dtype", kernels())
def test_every_attention_gives_the_values_of_each_completion_alone(kind, attention, dtype):
    torch.manual_seed(0)
    reference = MODELS[kind]().eval()
    expected = alone(reference)
    of_expected = gradients_of(reference, expected)
    model = reference.to(DEVICE, getattr(torch, dtype))
    model.set_attn_implementation(attention)
    values = plain_pass(temperature=0.9).rate_packs(model, random_rollouts(PROMPT_LENGTHS, LENGTHS), ALL).logprobs
    tolerance = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    torch.testing.assert_close(values.detach().float().to(CPU), expected.detach(), atol=tolerance, rtol=0)
    assert relative(gradients_on(model, values), of_expected) < tolerance


def gradients_on(model: PreTrainedModel, logprobs: Tensor) -> Tensor:
    """`gradients_of` on the model's device."""
    model.zero_grad()
    (logprobs * torch.linspace(-1, 1, len(logprobs), device=logprobs.device)).sum().backward()
    return torch.cat([parameter.grad.flatten().float().to(CPU) for parameter in model.parameters()])


def relative(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference in terms of the expected norm."""
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text", "cohere"])
def test_the_probe_of_log_probabilities_passes(architecture, autocast):
    model = make_random_model(architecture, "sdpa")
    assert share_prompts(model)
    if runs_here():
        model.set_attn_implementation(FLEX_SHARED_PROMPTS)
    prompts = [Prompt(str(length), tuple(range(3, 3 + length))) for length in (5, 9)]
    check_forward_pass(model.to(DEVICE), plain_pass(temperature=0.7, autocast=autocast), make_probe(prompts))


@pytest.mark.parametrize("first_on_cpu", [True, False])
def test_a_run_goes_on_on_the_other_device(pupil, tmp_path, logs, first_on_cpu):
    places = [environment(CUDA_VISIBLE_DEVICES=""), environment()][:: 1 if first_on_cpu else -1]
    for folder, steps, env in (("run", 2, places[0]), ("run", 4, places[1]), ("whole", 4, places[0])):
        command = training(pupil, tmp_path / "outputs", f"hydra.run.dir={tmp_path / folder}", max_steps=steps)
        result = run(*command, folder=logs, env=env)
        assert result.code == 0, result.stderr
    run_folder, whole = tmp_path / "run", tmp_path / "whole"
    if DEVICE == CPU:
        assert_same_end(run_folder, whole)
        return
    assert [line["step"] for line in metrics_of(run_folder)] == [line["step"] for line in metrics_of(whole)]
    # The updates of another device start from the same weights and moments; rounding may change a draw.
    for name, weights in kept_weights(whole, 4).items():
        assert relative(kept_weights(run_folder, 4)[name], weights) < 1e-2
