"""The whole of verl on the CPU: Ray, its queue, agents and rewards, FSDP2 on gloo, and the plug-in. make test-verl-run.

tests/support/verl/on_cpu.py says what verl lacks for that: a platform, and an engine that samples without a GPU.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed here: make test-verl-run")

from lens.models.tiny import TinyRecipe, make_model, make_tokenizer
from lens.problems.worlds import arithmetic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support" / "verl"
SETTINGS = {
    "data.train_batch_size": 4,
    "data.max_prompt_length": 32,
    "data.max_response_length": 8,
    "data.dataloader_num_workers": 0,
    "actor_rollout_ref.model.use_remove_padding": "false",
    "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "false",
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 8,
    "actor_rollout_ref.actor.use_torch_compile": "false",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile": "false",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype": "fp32",
    "actor_rollout_ref.actor.optim.lr": 1e-3,
    "actor_rollout_ref.actor.clip_ratio_c": 1e9,
    "actor_rollout_ref.rollout.name": "transformers",
    "actor_rollout_ref.rollout.n": 4,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 8,
    "actor_rollout_ref.rollout.agent.num_workers": 1,
    "actor_rollout_ref.rollout.calculate_log_probs": "true",
    "actor_rollout_ref.rollout.free_cache_engine": "false",
    "actor_rollout_ref.rollout.load_format": "auto",
    "actor_rollout_ref.rollout.n_gpus_per_node": 1,
    "reward.num_workers": 1,
    "reward.custom_reward_function.path": SUPPORT / "rewards.py",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    "trainer.n_gpus_per_node": 1,
    "trainer.nnodes": 1,
    "trainer.total_training_steps": 2,
    "trainer.val_before_train": "false",
    "trainer.test_freq": -1,
    "trainer.save_freq": -1,
    "trainer.logger": "[console,file]",
    "trainer.device": "cpu",
    "ray_kwargs.ray_init.num_cpus": 16,
    "+ray_kwargs.ray_init.num_gpus": 1,
    "+ray_kwargs.ray_init.include_dashboard": "false",
    "+ray_kwargs.ray_init.object_store_memory": 200_000_000,
}
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)]),
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",
    "VERL_USE_EXTERNAL_MODULES": "on_cpu,lens.integrations.verl",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's workers would otherwise come after everything else on the machine
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small untrained model, and 16 problems in verl's form."""
    folder = tmp_path_factory.mktemp("verl")
    tokenizer = make_tokenizer()
    model = make_model(TinyRecipe(hidden_size=64, intermediate_size=64, num_layers=2, num_heads=2), tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    problems = [arithmetic.teach(rng)[0] for _ in range(16)]
    rows = [
        {
            "data_source": "arithmetic",
            "prompt": [{"role": "user", "content": problem}],
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": number},
        }
        for number, problem in enumerate(problems)
    ]
    datasets.Dataset.from_list(rows).to_parquet(folder / "problems.parquet")
    return folder


def run_verl(folder: Path, out: Path, **overrides: str) -> list[dict]:
    """Train for two steps, and return what verl logged of each."""
    settings = SETTINGS | {
        "data.train_files": folder / "problems.parquet",
        "data.val_files": folder / "problems.parquet",
        "actor_rollout_ref.model.path": folder / "model",
        "trainer.default_local_dir": out / "checkpoints",
        "hydra.run.dir": out / "hydra",
    }
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *(f"{key}={value}" for key, value in settings.items())]
    environment = os.environ | ENVIRONMENT | {"VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl")}
    with (out / "log").open("w") as log:  # a pipe would stay open as long as Ray's daemons live
        code = subprocess.run(command, env=environment, cwd=out, stdout=log, stderr=log, timeout=1700).returncode
    assert code == 0, (out / "log").read_text()[-5000:]
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_steps_on_nothing_but_negative_groups_move_the_policy(folder, tmp_path):
    """Every reward is 0: GRPO would stand still, and LENS has advantages and a gradient."""
    steps = run_verl(
        folder,
        tmp_path,
        algorithm__adv_estimator="lens",
        reward__custom_reward_function__name="nothing_is_right",
    )
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        logged = step["data"]
        assert logged["critic/score/max"] == 0
        assert logged["critic/advantages/max"] > 0 > logged["critic/advantages/min"]
        assert logged["groups/frac_negative"] == logged["groups/advantage_share_negative"] == 1
        assert logged["actor/grad_norm"] > 0
