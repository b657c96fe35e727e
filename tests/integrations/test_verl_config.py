"""What the plug-in says of verl's config before a run, and the example that stands on verl's config: make test-verl."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed here: make test-verl")

from verl.utils.config import validate_config

from lens.integrations import verl as plugin
from lens.integrations.names import make_objective
from tests.support.verl.answers import config, trainer

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


# --- the example -----------------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "examples" / "verl"


def test_the_example_composes_on_verls_config_and_has_the_papers_numbers():
    """The same numbers as configs/experiment/paper, which the paper's words stand beside."""
    with initialize_config_dir(str(EXAMPLE), version_base=None):
        made = compose("llama3.1_8b", ["data.train_files=a.parquet", "data.val_files=b.parquet"])
    paper = OmegaConf.load(EXAMPLE.parents[1] / "configs" / "experiment" / "paper" / "base.yaml")
    trainer, rollouts = paper.trainer, paper.trainer.rollouts
    actor, rollout = made.actor_rollout_ref.actor, made.actor_rollout_ref.rollout
    assert made.data.train_batch_size == rollouts.num_prompts_per_rollout
    assert made.data.max_response_length == rollouts.max_completion_length
    assert rollout.n == rollouts.num_generations
    assert (rollout.temperature, rollout.top_p) == (rollouts.temperature, rollouts.top_p)
    assert actor.ppo_mini_batch_size == trainer.num_prompts_per_step
    assert actor.loss_agg_mode == paper.loss.loss_agg_mode
    updates_a_step = made.data.train_batch_size // actor.ppo_mini_batch_size
    assert made.trainer.total_training_steps * updates_a_step == trainer.max_steps
    assert (actor.optim.lr, actor.clip_ratio_low, actor.clip_ratio_high) == (3e-7, 0.2, 0.2)
    assert made.algorithm.objective_options == {"alpha": 0.25}
    validate_config(made, use_reference_policy=False, use_critic=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugin.check_config(made, make_objective(made.algorithm.adv_estimator, **made.algorithm.objective_options))


def test_the_examples_launcher_is_a_shell_script_that_names_the_plug_in():
    script = (EXAMPLE / "train.sh").read_text()
    assert "VERL_USE_EXTERNAL_MODULES=lens.integrations.verl" in script
    subprocess.run(["bash", "-n", str(EXAMPLE / "train.sh")], check=True)
