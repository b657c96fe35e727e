"""Lists the config keys and options of version 0.1 that were renamed, so that an error can name the new one."""

from __future__ import annotations

# New section -> the keys that moved there from the section trainer.
SECTIONS = {
    "loss": "epsilon_low epsilon_high dual_clip loss_agg_mode beta entropy_coef",
    "optimizer": "learning_rate adam_betas adam_eps weight_decay max_grad_norm lr_scheduler warmup_steps",
    "trainer.rollouts": (
        "num_prompts_per_rollout num_generations max_completion_length temperature top_p truncated "
        "old_logprobs confidence importance_sampling importance_cap rollouts_every"
    ),
    "trainer.memory": (
        "max_tokens_per_microbatch logits_chunk_size autocast gradient_checkpointing torch_compile num_threads"
    ),
    "trainer.checkpoints": "checkpoint_every keep_checkpoints keep_best",
}
# Old dotted key -> new one.
MOVED_KEYS = {f"trainer.{name}": f"{section}.{name}" for section, names in SECTIONS.items() for name in names.split()}

# Old option of a config group -> what to type now.
MOVED_OPTIONS = {
    ("experiment", "smollm2_arithmetic"): "experiment=smollm2/arithmetic",
    ("experiment", "smollm2_math"): "experiment=smollm2/math",
    ("experiment", "table1_llama"): "experiment=paper/table1_llama",
    ("experiment", "table1_qwen"): "experiment=paper/table1_qwen",
    ("experiment", "table2_ablation"): "experiment=paper/table2_ablation",
    ("experiment", "table3_llama"): "experiment=paper/table3_llama",
    ("experiment", "table3_qwen"): "experiment=paper/table3_qwen",
    ("experiment", "tiny_ablation"): "experiment=tiny/ablation",
    ("experiment", "tiny_alpha"): "experiment=tiny/alpha",
    ("experiment", "tiny_map"): "experiment=map/middle",
    ("experiment", "tiny_map_alpha"): "experiment=map/alpha",
    ("experiment", "tiny_map_collapse"): "experiment=map/collapse",
    ("experiment", "tiny_map_compute"): "experiment=map/compute",
    ("experiment", "tiny_map_entropy"): "experiment=map/entropy",
    ("experiment", "tiny_map_generations"): "experiment=map/generations",
    ("experiment", "tiny_map_learning_rate"): "experiment=map/learning_rate",
    ("experiment", "tiny_map_levels"): "experiment=map/levels",
    ("experiment", "tiny_map_long"): "experiment=map/long",
    ("experiment", "tiny_map_penalty"): "experiment=map/penalty",
    ("experiment", "tiny_map_unscaled"): "experiment=map/unscaled",
    ("experiment", "tiny_map_updates"): "experiment=map/updates",
    ("experiment", "tiny_map_warm_starts"): "experiment=map/warm_starts",
    ("experiment", "tiny_objectives"): "experiment=tiny/objectives",
    ("experiment", "tiny_paired"): "experiment=tiny/paired",
    ("experiment", "tiny_tune"): "experiment=tiny/tune",
    ("trainer", "paper"): "experiment=paper/base",
    ("hydra/launcher", "joblib"): "hydra/launcher=local",
}
