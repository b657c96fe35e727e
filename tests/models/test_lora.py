"""Low-rank adapters: what is trained, what others see of it, what is stored, and what cannot be one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lens.config.checks import check_values
from lens.errors import ConfigError
from lens.models.loading import load_model
from lens.models.lora import WEIGHTS_FILE, add_adapters, check_adapters, load_adapters
from lens.models.sharding import gather_named_weights
from lens.runs.checkpoints import ADAPTER_FOLDER, save_checkpoint
from lens.sampling.transformers import TransformersSampler
from lens.training.policy import make_optimizer
from tests.support.command_line import assert_same_end, metrics_of, run, training, weights_of
from tests.support.losses import plain_pass
from tests.support.rollouts import ALL, random_rollouts
from tests.support.rounding import TOLERANCE

ADAM = OmegaConf.create({"learning_rate": 1e-2, "adam_betas": [0.9, 0.999], "adam_eps": 1e-8, "weight_decay": 0.01})
IDS = torch.arange(3, 23)[None]


def settings(**changes: object) -> DictConfig:
    return OmegaConf.create({"r": 4, "alpha": 8, "target_modules": "all-linear"} | changes)


def perturb(model: PreTrainedModel) -> None:
    """Give every adapter weight another value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def adapted(tiny) -> PreTrainedModel:
    """The tiny model with adapters that change it."""
    add_adapters(tiny[0], settings(), seed=0)
    perturb(tiny[0])
    return tiny[0]


# --- what is trained ---


def test_adapters_start_without_effect_and_by_their_seed(tiny_folder):
    plain = load_model(str(tiny_folder))[0]
    starts = []
    for seed in (0, 0, 1):
        model = load_model(str(tiny_folder))[0]
        torch.rand(len(starts))  # what was drawn before does not matter
        before = torch.get_rng_state()
        add_adapters(model, settings(), seed)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(logits(model), logits(plain))
        assert not any(module.training for module in model.modules())
        starts.append(torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    c = plain.config
    widths = 4 * 2 * c.hidden_size + 3 * (c.hidden_size + c.intermediate_size)  # in and out, of the seven layers
    assert len(starts[0]) == 4 * widths * c.num_hidden_layers  # as many key heads as heads


@pytest.mark.parametrize(
    "choices",
    [{}, {"gradient_checkpointing": True}, pytest.param({"torch_compile": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_an_update_changes_every_adapter_and_no_other_weight(tiny, choices):
    model, _ = tiny
    before = {name: tensor.clone() for name, tensor in gather_named_weights(model)}
    add_adapters(model, settings(), seed=0)
    optimizer = make_optimizer(model, ADAM)
    at_first = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for _ in range(2):  # at first the gradient of A is zero, as B is
        rollouts = random_rollouts((5, 1, 9), (4, 1, 7, 6, 1, 8))
        values = plain_pass(logits_chunk_size=5, **choices).rate_packs(model, rollouts, ALL)
        optimizer.zero_grad()
        values.logprobs.mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, at_first[name]) != (".lora_" in name), name
        assert (parameter in optimizer.state) == parameter.requires_grad == (".lora_" in name)
    after = dict(gather_named_weights(model))
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if "_proj." in name}


def test_adapters_may_be_of_some_layers_alone(tiny):
    add_adapters(tiny[0], settings(target_modules=["q_proj", "layers.1.mlp.up_proj"]), seed=0)
    layers = {name.split(".lora_")[0] for name, parameter in tiny[0].named_parameters() if parameter.requires_grad}
    assert layers == {*(f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)), "model.layers.1.mlp.up_proj"}


# --- what others see ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_weights_are_those_of_peft_s_own_merge(tiny_folder, dtype):
    model = load_model(str(tiny_folder), dtype=dtype)[0]
    names = [name for name, _ in gather_named_weights(model)]
    add_adapters(model, settings(r=3, alpha=5), seed=0)
    perturb(model)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=getattr(torch, dtype))
    chosen = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(base, chosen, autocast_adapter_dtype=False)
    ours = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".lora_" in name:
                parameter.copy_(ours.pop(name.removeprefix("base_model.model.")))
    assert not ours
    merged = dict(theirs.merge_and_unload().named_parameters(remove_duplicate=False))
    found = list(gather_named_weights(model))
    assert [name for name, _ in found] == names
    assert merged.keys() == set(names)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in found)
    assert not any(tensor.requires_grad for _, tensor in found)


def test_layers_that_are_stored_transposed_are_merged_too():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2)).eval()
    plain = GPT2LMHeadModel(model.config).eval()
    add_adapters(model, settings(target_modules=["c_attn"]), seed=0)
    perturb(model)
    plain.load_state_dict(dict(gather_named_weights(model)))
    torch.testing.assert_close(logits(plain), logits(model), atol=TOLERANCE["float32"], rtol=TOLERANCE["float32"])


def test_the_sampler_and_the_update_use_the_adapted_model(adapted, tiny):
    rollouts = random_rollouts((5, 1, 9), (4, 1, 7, 6, 1, 8))
    sampled = TransformersSampler(*tiny, max_num_seqs=8).sample(rollouts.prompts, 2, 0, max_completion_length=6)
    with torch.no_grad():
        rated = plain_pass(logits_chunk_size=5).rate_packs(adapted, sampled, [[n] for n in range(6)]).logprobs
    torch.testing.assert_close(sampled.logprobs[sampled.mask], rated, atol=TOLERANCE["float32"], rtol=0)


# --- what is stored ---


def test_a_checkpoint_is_the_sum_as_a_plain_model_and_the_adapters_beside_it(adapted, tiny, tiny_folder, tmp_path):
    optimizer = make_optimizer(adapted, ADAM)
    checkpoint = save_checkpoint(tmp_path, *tiny, optimizer, {"step": 1, "config": {}}, keep=1)
    whole = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not any("lora" in name for name in load_file(checkpoint / "model.safetensors"))
    torch.testing.assert_close(logits(whole), logits(adapted), atol=TOLERANCE["float32"], rtol=TOLERANCE["float32"])
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert not torch.allclose(logits(base), logits(adapted), atol=1e-2)
    theirs = PeftModel.from_pretrained(base, checkpoint / ADAPTER_FOLDER)
    assert torch.equal(logits(theirs), logits(adapted))
    again, _ = load_model(str(tiny_folder))
    add_adapters(again, settings(), seed=5)
    load_adapters(checkpoint / ADAPTER_FOLDER, again)
    assert all(map(torch.equal, again.parameters(), adapted.parameters()))


# --- what cannot be ---


@pytest.mark.parametrize("target", ["q_porj", "lm_head", "embed_tokens", "proj", "layers.7.mlp.up_proj"])
def test_layers_that_are_not_there_are_refused_with_those_that_are(tiny, target):
    with pytest.raises(ConfigError, match=r"model\.lora\.target_modules=.*down_proj, gate_proj, k_proj") as error:
        check_adapters(tiny[0], settings(target_modules=["q_proj", target]))
    assert "lm_head" not in error.value.valid
    check_adapters(tiny[0], settings(target_modules=["q_proj", "layers.1.mlp.up_proj"]))


@pytest.mark.parametrize("lora", [{"r": 8}, {"r": 8, "alpha": 16, "target_modules": "all-linear", "dropout": 0.1}])
def test_a_section_has_all_its_keys_and_no_other(lora):
    with pytest.raises(ConfigError, match=r"model\.lora=.*alpha, r, target_modules"):
        check_values(OmegaConf.create({"model": {"lora": lora}}))
    check_values(OmegaConf.create({"model": {"lora": settings(target_modules=["q_proj"])}}))


def test_what_cannot_work_is_refused_before_training(pupil, logs, tmp_path):
    said = {
        "model.lora.r=0": "error: model.lora.r=0: must be an integer >= 1",
        "model.lora.target_modules=[q_porj]": "error: model.lora.target_modules=['q_porj']: must be all-linear, or ",
    }
    for override, line in said.items():
        result = run(*training(pupil, tmp_path, "model/lora=default", override), folder=logs)
        assert result.code == 2
        assert result.one_line().startswith(line)
        assert not list(tmp_path.rglob("metrics.jsonl"))


def test_without_peft_the_error_says_what_installs_it(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"model\.lora={'r': 4.*pip install .*\[lora\]"):
        check_adapters(tiny[0], settings())


# --- from the command line ---


@pytest.fixture(scope="module")
def finished(pupil, logs, tmp_path_factory) -> tuple[list[object], Path]:
    """(command, run folder) of a run with adapters that never stopped."""
    outputs = tmp_path_factory.mktemp("lora")
    chosen = ["model/lora=default", "model.lora.r=4", "trainer.memory.gradient_checkpointing=true"]
    command = training(pupil, outputs, *chosen, learning_rate=1e-2, checkpoint_every=1, keep_checkpoints=4)
    result = run(*command, f"hydra.run.dir={outputs / 'run'}", folder=logs)
    assert result.code == 0, result.stderr
    return command, outputs / "run"


def test_a_run_trains_adapters_alone(finished, pupil):
    _, folder = finished
    assert all(line["grad_norm"] > 0 for line in metrics_of(folder) if "loss" in line)
    checkpoint = folder / "checkpoints" / "step_000004"
    base, trained = (load_file(where / "model.safetensors") for where in (pupil, checkpoint))
    assert trained.keys() == base.keys()
    changed = {name for name in base if not torch.equal(trained[name], base[name])}
    assert changed == {name for name in base if "_proj." in name}
    moments = load_file(next((checkpoint / "optimizer").glob("*.safetensors")))
    assert moments and all(".lora_" in name for name in moments)


def test_a_checkpoint_says_which_adapters_it_has(finished):
    adapters = finished[1] / "checkpoints" / "step_000004" / ADAPTER_FOLDER
    weights = load_file(adapters / WEIGHTS_FILE)
    assert {min(tensor.shape) for tensor in weights.values()} == {4}
    config = json.loads((adapters / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 32, 0)


def test_a_stopped_run_ends_like_one_that_never_stopped(finished, logs, tmp_path):
    command, whole = finished
    parts = [*command, f"hydra.run.dir={tmp_path / 'parts'}"]
    assert run(*parts, "trainer.max_steps=2", folder=logs).code == 0
    halfway = weights_of(tmp_path / "parts")
    # The weights come from the base model and the adapters: of the sum, rounding would be seen.
    rest = run(*parts, "resume=must", folder=logs)
    assert rest.code == 0, rest.stderr
    assert "Resuming from step 2" in rest.stdout
    assert weights_of(tmp_path / "parts") != halfway
    assert_same_end(tmp_path / "parts", whole)
    last = [f / "checkpoints/step_000004" / ADAPTER_FOLDER / WEIGHTS_FILE for f in (tmp_path / "parts", whole)]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_a_run_with_other_adapters_does_not_go_on(finished, logs, tmp_path):
    command, whole = finished
    folder = shutil.copytree(whole, tmp_path / "run")
    result = run(*command, "model.lora.r=8", f"hydra.run.dir={folder}", "trainer.max_steps=6", folder=logs)
    assert result.code == 2
    assert "model.lora.r is 8, there 4" in result.one_line()


def test_a_run_is_evaluated_as_any_other(finished, logs, tmp_path):
    _, folder = finished
    sizes = ["evaluation.sets.arithmetic.split=train", "evaluation.sets.arithmetic.size=20", "evaluation.num_samples=4"]
    command = ["scripts/evaluate.py", f"checkpoint={folder}", f"outputs={tmp_path}", *sizes]
    result = run(*command, folder=logs)
    assert result.code == 0, result.stderr
    assert "levels_4-5" in result.stdout
