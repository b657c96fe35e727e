#!/usr/bin/env bash
# LENS in verl 0.9 on 8 GPUs: bash examples/verl/train.sh TRAIN.parquet TEST.parquet [key=value …]
# The files are verl's own kind: columns data_source, prompt, reward_model.ground_truth, extra_info.index.
set -euo pipefail
train=$1 test=$2
shift 2

# verl loads the plug-in in each of its processes. On several machines Ray hands the variable on.
export VERL_USE_EXTERNAL_MODULES=lens.integrations.verl

exec python -m verl.trainer.main_ppo \
  --config-dir "$(cd "$(dirname "$0")" && pwd)" --config-name llama3.1_8b \
  data.train_files="$train" data.val_files="$test" \
  +ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES="$VERL_USE_EXTERNAL_MODULES" \
  "$@"
