"""The rules of values: what each refuses, and what it takes."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lens.cli.explaining import compose_known, list_keys
from lens.config.callables import check_objective, check_shaping
from lens.config.checks import NULLABLE, RULES, check_training, check_values
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.objectives.reward_shaping import overlong_penalty
from tests.support.configs import composed

OUT_OF_BOUNDS = {
    "seed": [-1],
    "resume": ["maybe"],
    "jobs": [0, -2],
    "check_golds": [1],
    "profile": [1],
    "trainer.max_steps": [0],
    "trainer.rollouts.num_prompts_per_rollout": [0],
    "trainer.num_prompts_per_step": [0],
    "trainer.rollouts.num_generations": [1],
    "trainer.rollouts.max_completion_length": [0],
    "trainer.rollouts.temperature": [0, -1],
    "trainer.rollouts.top_p": [0.99, 1.01],
    "trainer.rollouts.truncated": ["drop"],
    "trainer.rollouts.old_logprobs": ["engine"],
    "trainer.rollouts.confidence": ["engine"],
    "trainer.rollouts.importance_sampling": ["sequence_truncate"],
    "trainer.rollouts.importance_cap": [1, 0.5],
    "trainer.memory.autocast": ["float16"],
    "model.attention": ["fast", "org/kernel"],
    "loss.epsilon_low": [0, 1, -0.2],
    "loss.epsilon_high": [0, -0.2],
    "loss.dual_clip": [1, 0.5],
    "loss.ratio_min": [-0.1, 1.1],
    "loss.ratio_max": [0.9],
    "loss.log_epsilon_low": [0],
    "loss.log_epsilon_high": [0],
    "loss.tau_positive": [0],
    "loss.tau_negative": [0],
    "loss.loss_agg_mode": ["token-sum"],
    "loss.beta": [-0.1],
    "loss.entropy_coef": [-0.01],
    "optimizer.learning_rate": [-1e-6],
    "optimizer.adam_eps": [0],
    "optimizer.weight_decay": [-0.1],
    "optimizer.max_grad_norm": [0],
    "optimizer.lr_scheduler": ["triangle"],
    "optimizer.warmup_steps": [-1],
    "trainer.memory.max_tokens_per_microbatch": [0],
    "trainer.memory.logits_chunk_size": [0],
    "trainer.memory.gradient_checkpointing": ["yes", 1],
    "trainer.memory.torch_compile": ["yes", 1],
    "trainer.memory.data_parallel_shard_degree": [0],
    "trainer.negative_answers": [0, 1.5],
    "trainer.negative_answers_by": ["length"],
    "trainer.grad_share_every": [-1],
    "trainer.checkpoints.checkpoint_every": [0],
    "trainer.checkpoints.keep_checkpoints": [0],
    "trainer.checkpoints.keep_best": ["reward", "pass@"],
    "trainer.non_finite": ["ignore"],
    "trainer.max_entropy": [0],
    "trainer.rollouts.rollouts_every": [-1],
    "trainer.memory.num_threads": [0],
    "grader.unjudgeable": ["wrong", True],
    "evaluation.every": [-1],
    "evaluation.num_samples": [0],
    "evaluation.temperature": [-0.1],
    "evaluation.top_p": [0, 1.1],
    "evaluation.max_completion_length": [0],
    "evaluation.by_level": ["yes", 1],
    "objective.alpha": [-0.01],
    "objective.eps": [0],
    "objective.groups": ["positive"],
    "objective.difficulty": ["exact"],
    "objective.scale_mixed": [0],
    "objective.scale_negative": [0],
    "objective.rho": [0, 1.1, "pi"],
    "objective.scale_by_std": [0],
    "sampler.max_num_seqs": [0],
    "sampler.dtype": ["float64"],
    "sampler.max_model_len": [1],
    "sampler.kv_cache_space": [0],
    "sampler.gpu_memory_utilization": [0, 1.1],
    "sampler.tensor_parallel_size": [0],
    "sampler.enforce_eager": [1],
    "sampler.sleep": [1],
    "sampler.parity_every": [-1],
    "sampler.max_logp_difference": [0],
    "sampler.max_mean_logp_difference": [0],
    "model.stop": ["\n\n", [""], [13], None],
    "model.lora": [{"r": 16}, 16],
    "model.lora.r": [0],
    "model.lora.alpha": [0],
    "model.lora.target_modules": ["q_proj", [], [""], None],
    "model.prompt.template": ["bare"],
    "model.prompt.max_length": [0],
    "model.prompt.date": ["2024-7-26", "2024-02-30", "20240726", "2024-W30-5", "today", 20240726],
    "part": ["all"],
    "rounds": [0],
    "warmup": [-1],
    "peak_size": [0],
    "naive.sequences": [0],
    "made_up.shortest_share": [0, 1.1],
    "made_up.prompt_length": [0],
    "made_up.silent_share": [-0.1, 1.1],
    "trl.per_device_train_batch_size": [0],
    "trl.gradient_checkpointing": [1],
    "grader.correct_from": [0, 1.1],
    "grader.reward": ["both"],
    "scaling.sampled": [1],
    "memory.num_layers": [0],
    "memory.hidden_size": [0],
    "memory.vocab_size": [0],
}


def test_every_rule_is_about_a_key_that_there_is():
    assert OUT_OF_BOUNDS.keys() == RULES.keys()
    chosen = ["experiment=smollm2/math", "model/lora=default", "grader=scored"]
    there = [*list_keys(compose_known("train", chosen)), *list_keys(compose_known("benchmark", ["part=step"]))]
    for loss in (CONFIGS / "loss").glob("*.yaml"):  # each has keys of its own
        there += list_keys(compose_known("train", [f"loss={loss.stem}"]))
    assert RULES.keys() <= set(there)


@pytest.fixture(scope="module")
def plain() -> DictConfig:
    return composed("experiment=smollm2/math", "model/lora=default", "evaluation.num_samples=16")


@pytest.mark.parametrize("key", RULES)
def test_every_rule_refuses(plain, key):
    for value in [*OUT_OF_BOUNDS[key], "nonsense", [1], float("nan")]:
        config = copy.deepcopy(plain)
        OmegaConf.update(config, key, value, merge=False, force_add=True)  # some belong to the benchmark alone
        with pytest.raises(ConfigError) as error:
            check_values(config)
        assert error.value.key == key
        assert str(error.value).startswith(f"{key}=")
        assert error.value.valid.startswith("must be ")
        assert error.value.valid.count("null") == (key in NULLABLE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.rollouts.temperature", 0.7),
        ("trainer.rollouts.top_p", 1),
        ("loss.dual_clip", None),
        ("loss.dual_clip", 3),
        ("loss.ratio_min", 0),
        ("loss.ratio_min", None),
        ("loss.ratio_max", 1),
        ("trainer.memory.num_threads", None),
        ("trainer.checkpoints.keep_best", None),
        ("trainer.checkpoints.keep_best", "pass@16"),
        ("trainer.max_entropy", None),
        ("resume", "/"),
        ("loss.beta", 0),
        ("loss.entropy_coef", 0.01),
        ("evaluation.temperature", 0),
        ("evaluation.every", 0),
        ("objective.alpha", 0),
        ("objective.scale_mixed", None),
        ("objective.scale_negative", 1),
        ("loss.loss_agg_mode", "seq-mean-token-sum-norm"),
        ("model.lora", None),
        ("model.lora.r", 1),
        ("model.lora.target_modules", ["q_proj"]),
    ],
)
def test_what_lies_on_a_bound_is_taken(plain, key, value):
    config = copy.deepcopy(plain)
    OmegaConf.update(config, key, value, force_add=True)  # some belong to another loss
    check_values(config)
    check_training(config)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", -1, "seed=-1: must be an integer >= 0"),
        ("trainer.memory.num_threads", 0, "trainer.memory.num_threads=0: must be an integer >= 1, or null"),
        (
            "trainer.memory.autocast",
            "float16",
            "trainer.memory.autocast='float16': must be one of auto, bfloat16, or null",
        ),
        (
            "model.dtype",
            "auto",
            "model.dtype='auto': must be float32, bfloat16 or float64: trained weights have one type on every machine, "
            "and trainer.memory.autocast=auto chooses that of the products",
        ),
        ("loss.dual_clip", 1, "loss.dual_clip=1: must be a number > 1, or null for none"),
        (
            "trainer.num_prompts_per_step",
            3,
            "trainer.num_prompts_per_step=3: must be a divisor of trainer.rollouts.num_prompts_per_rollout=8",
        ),
    ],
)
def test_the_line_says_what_a_value_must_be(plain, key, value, line):
    config = copy.deepcopy(plain)
    OmegaConf.update(config, key, value)
    with pytest.raises(ConfigError) as error:
        check_values(config)
        check_training(config)
    assert str(error.value) == line


def test_true_is_no_number(plain):
    config = copy.deepcopy(plain)
    config.trainer.max_steps = True
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=True"):
        check_values(config)


def test_an_objective_is_called_before_anything_is_made():
    def unknown(correct, *, rewrads):
        return correct.float()

    def no_shape(confidence):
        return confidence.mean(dim=1)

    def no_numbers(correct, confidence, *, lengths, valid):
        return correct

    def no_tensor(correct):
        return correct.tolist()

    for objective, reason in (
        (unknown, "it asks for rewrads, which must have a default or be one of rewards, correct, valid"),
        (no_shape, r"must return floating advantages \[Q, G\] or \[Q, G, T\], not torch.float32 \[2\]"),
        (no_numbers, "bool"),
        (no_tensor, r"not \[\[True"),
    ):
        with pytest.raises(ConfigError, match=reason) as error:
            check_objective(objective)
        assert error.value.key == "objective._target_"
        assert objective.__name__ in str(error.value)


def test_an_objective_is_tried_with_as_many_answers_as_the_run_samples():
    def best_of_three(correct):
        if correct.shape[1] < 3:
            raise ValueError(f"k=3 is above G={correct.shape[1]}")
        return correct.float()

    assert not check_objective(best_of_three, 4)
    with pytest.raises(ConfigError, match="best_of_three': k=3 is above G=2"):
        check_objective(best_of_three, 2)


def test_trying_an_objective_leaves_its_memory_and_the_random_numbers_alone():
    class Counting:
        calls = 0

        def __call__(self, mask):
            self.calls += 1
            return torch.rand(mask.shape)

    objective, state = Counting(), torch.get_rng_state()
    assert check_objective(objective)  # its advantages are per token
    assert objective.calls == 0 and torch.equal(torch.get_rng_state(), state)


def test_a_shaping_is_called_too():
    def endless(rewards):
        return rewards / 0

    with pytest.raises(ConfigError, match=r"reward_shaping\._target_='.*endless': must return finite rewards \[Q, G\]"):
        check_shaping(endless, 4)
    with pytest.raises(ConfigError, match="buffer=8 must be at most the 4 tokens"):
        check_shaping(functools.partial(overlong_penalty, buffer=8), 4)
