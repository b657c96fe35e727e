"""Plans: numbers against those that are published or computed by hand, and plans that cannot work."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.models.loading import load_model
from lens.planning.architecture import architecture_of
from lens.planning.communication import Communication, advise_on_replicas
from lens.planning.forecast import GIB, make_plan
from lens.planning.rules import RULES
from lens.training.policy import make_optimizer
from tests.support.command_line import run

PAPER = ["table1_llama", "table1_qwen", "table2_ablation", "table3_llama", "table3_qwen"]
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("plan", overrides=list(overrides))


@pytest.mark.parametrize(
    ("model", "parameters", "layer"),
    [
        # By their model cards: 8.03 B, 3.09 B, 135 M and 270 M; exactly, by the sizes of their weight files.
        ("llama3.1_8b", 8_030_261_248, 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096),
        ("qwen2.5_3b", 3_085_938_688, 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008 + 2 * 2048 + 2048 + 2 * 256),
        ("smollm2", 134_515_008, 2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576),
        ("gemma3_270m", 268_098_176, 2 * 640 * 1024 + 2 * 640 * 256 + 3 * 640 * 2048 + 4 * 640 + 2 * 256),
    ],
)
def test_parameters_are_those_of_the_published_weights(model, parameters, layer):
    architecture = architecture_of(composed(f"model={model}"))
    assert (architecture.parameters, architecture.layer) == (parameters, layer)


def test_the_tiny_model_is_counted_too(tiny_folder):
    from transformers import AutoModelForCausalLM

    from_recipe = architecture_of(composed())
    assert 0.5e6 < from_recipe.parameters < 0.6e6
    loaded = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert architecture_of(composed(f"model.name_or_path={tiny_folder}")).parameters == loaded.num_parameters()


def test_an_unknown_model_is_refused_with_the_key_to_set():
    with pytest.raises(ConfigError, match=r"model\.name_or_path='no/such'.*model\.architecture"):
        architecture_of(composed("model=hf", "model.name_or_path=no/such"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_a_plan(experiment):
    num_gpus = 8 if experiment in PAPER else 1
    made = make_plan(composed(f"experiment={experiment}", f"num_gpus={num_gpus}"))
    assert all(tokens >= 0 and hours >= 0 for tokens, hours in made.hours().values())
    assert made.room_for_cache >= made.cache_a_sequence


def test_the_batches_of_the_paper():
    made = make_plan(composed("experiment=paper/table1_llama", "num_gpus=8"))
    assert made.answers_a_round == 2048 and made.updates_a_round == 4 and made.rounds == 400
    assert made.problems == 7_500 + 17_500 and made.steps_an_epoch == 25_000 // 128 * 4
    assert made.evaluations == 5 and made.evaluated == 5_500


def test_memory_is_what_a_pencil_says():
    made = make_plan(composed("experiment=paper/table1_llama", "num_gpus=8"))
    states = 4 * 8_030_261_248 / 8  # float32, an eighth
    assert made.states() == {"weights": states, "optimizer state (AdamW)": 2 * states}
    assert made.sampling() == {"engine's weights": 2 * 8_030_261_248}  # bfloat16, whole
    assert made.cache_a_sequence == 2 * 32 * 8 * 128 * 2 * (1024 + 4096)
    update = made.update()
    assert update["gradients"] == states
    (logits,) = [size for name, size in update.items() if name.startswith("logits")]
    # A chunk, and two pieces of at most 2^27 numbers; the gradient of the head is in what is gathered.
    head = 4 * (4096 * 128_256 + 2 * 2**27)
    # A layer keeps of a token inputs of norms and normalised inputs in float32; in bfloat16 five inputs of linear
    # layers, queries, attention's output twice, keys and values, and four values of the feed-forward block, which gets
    # two gradients.
    layer = 2 * (4 + 4) * 4096 + 2 * ((5 + 3) * 4096 + 2 * 1024 + (4 + 2) * 14336)
    memory, tokens = made.config.trainer.memory, made.config.trainer.memory.max_tokens_per_microbatch
    assert memory.gradient_checkpointing and memory.autocast == "auto"
    assert logits == max(head, tokens * layer)
    assert update["activations"] == tokens * 32 * 4 * 4096  # the inputs of layers, in float32
    made.config.trainer.memory.gradient_checkpointing = False
    update = made.update()
    assert update["activations"] == tokens * 32 * (layer - 2 * 2 * 14336)
    assert head in update.values()
    assert made.room_for_cache == pytest.approx(0.5 * 80 * GIB - 2 * 8_030_261_248)


def test_weights_in_bfloat16_also_need_masters_and_their_moments_and_gradients_are_in_float32():
    made = make_plan(composed("experiment=paper/table1_llama", "num_gpus=8", "model.dtype=bfloat16"))
    weights = 8_030_261_248 / 8
    assert made.states() == {
        "weights": 2 * weights,
        "optimizer state (AdamW)": 8 * weights,
        "master weights (float32)": 4 * weights,
    }
    assert made.update()["gradients"] == 4 * weights
    adapted = make_plan(
        composed("experiment=paper/table1_llama", "num_gpus=8", "model.dtype=bfloat16", "model/lora=default")
    )
    adapters = adapted.model.adapters / 8
    assert adapted.states() == {
        "weights": 2 * weights,
        "optimizer state (AdamW)": 8 * adapters,
        "master weights (float32)": 4 * adapters,
        "adapters": 2 * adapters,
    }
    assert adapted.update()["gradients"] == 4 * adapters


def test_the_plan_counts_the_bytes_that_an_update_leaves(tiny_folder):
    for dtype in ("float32", "bfloat16", "float64"):
        config = composed(f"model.name_or_path={tiny_folder}", f"model.dtype={dtype}")
        model, _ = load_model(str(tiny_folder), dtype=dtype)
        optimizer = make_optimizer(model, config.optimizer)
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        kept = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        made = make_plan(config)
        assert sum(made.states().values()) == sum(value.nbytes for value in [*kept, *model.parameters()])


def test_hours_are_what_a_pencil_says():
    made = make_plan(composed("experiment=paper/table1_llama", "num_gpus=8", "trained_share=0.5"))
    tokens, hours = made.hours()["updates"]
    assert tokens == 1600 * 512 * 0.5 * 750
    # A forward pass: 2 a parameter but for the embedding, and attention to 375 tokens; the backward pass is two of
    # them, and computing layers again a fourth.
    forward = 2 * (8_030_261_248 - 128_256 * 4096) + 4 * 32 * 4096 * 375
    assert hours == pytest.approx(tokens * 4 * forward / (989e12 * 0.35) / 3600)


def test_the_plan_counts_the_passes_that_an_objective_asks_for():
    plain, entropies, reference = (
        make_plan(composed(f"objective={name}", "trainer.rollouts.old_logprobs=sampler"))
        for name in ("grpo", "rl_zvp", "ace")
    )
    sampled, answer = plain.hours()["generation for training"][0], plain.tokens_an_answer
    prompt = min(plain.config.mean_prompt_length, plain.config.model.prompt.max_length)
    assert plain.hours()["log-probabilities"][0] == 0
    for made in (entropies, reference):  # each token once, prompts included
        assert made.hours()["log-probabilities"][0] == sampled * (prompt + answer) / answer
    assert "reference model" in reference.states() and "reference model" not in entropies.states()


def test_groups_that_a_filter_drops_are_sampled_all_the_same():
    plain = make_plan(composed("objective=grpo"))
    filtered = make_plan(composed("objective=grpo", "filter_groups=zero_variance", "kept_share=0.25"))
    for part, times in (("generation for training", 4), ("generation for evaluation", 1), ("updates", 1)):
        assert filtered.hours()[part][0] == times * plain.hours()[part][0]


def test_with_adapters_nothing_else_has_gradients():
    overrides = ["experiment=paper/table1_llama", "num_gpus=8"]
    whole, made = make_plan(composed(*overrides)), make_plan(composed(*overrides, "model/lora=default"))
    # Rank 16, in and out: queries and output, keys and values, gate and up, down.
    widths = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 2 * (4096 + 14336) + (14336 + 4096)
    adapters = 4 * 16 * widths * 32 / 8  # float32, an eighth
    assert made.states() == {
        "weights": whole.states()["weights"],
        "optimizer state (AdamW)": 2 * adapters,
        "adapters": adapters,
    }
    assert made.update()["gradients"] == adapters
    assert made.hours()["updates"][1] == pytest.approx(3 / 4 * whole.hours()["updates"][1])
    make_plan(composed("experiment=paper/table1_llama", "model/lora=default", "num_gpus=1"))  # else refused
    with pytest.raises(
        ConfigError, match=r"model\.lora\.target_modules=\['qkv'\]: must be all-linear, or some of down_proj"
    ):
        make_plan(composed(*overrides, "model/lora=default", "model.lora.target_modules=[qkv]"))


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["num_gpus=3"], "num_gpus", "a divisor of trainer.num_prompts_per_step=32"),
        (["num_gpus=1"], "num_gpus", r"the update needs \d+\.\d GiB a GPU, .* optimizer state"),
        (
            [
                "num_gpus=8",
                "trainer.memory.gradient_checkpointing=false",
                "trainer.memory.max_tokens_per_microbatch=20480",
            ],
            "num_gpus",
            "activations; 73.6 GiB of 80 can be used",
        ),
        (
            ["num_gpus=8", "sampler.gpu_memory_utilization=0.15"],
            "sampler.gpu_memory_utilization",
            "for the cache of one sequence of 5,120",
        ),
        (
            ["num_gpus=8", "dataset.math.size=50", "dataset.dapo.size=50"],
            "trainer.rollouts.num_prompts_per_rollout",
            "at most",
        ),
        (["num_gpus=0"], "num_gpus", "an integer >= 1"),
        (
            ["num_gpus=8", "trainer.memory.data_parallel_shard_degree=3"],
            "trainer.memory.data_parallel_shard_degree",
            "must be null, or a divisor of 8, the number of processes",
        ),
    ],
)
def test_plans_that_cannot_work_are_refused_with_the_numbers(overrides, key, says):
    with pytest.raises(ConfigError, match=says) as error:
        make_plan(composed("experiment=paper/table1_llama", *overrides))
    assert error.value.key == key


def test_the_embedded_engine_needs_room_for_all_that_it_decodes_at_once():
    overrides = ["experiment=paper/table1_qwen", "sampler=transformers", "num_gpus=1", "sampler.max_num_seqs=512"]
    with pytest.raises(ConfigError, match=r"must be at most \d+: each of 512 sequences takes 0\.\d\d GiB") as error:
        make_plan(composed(*overrides))
    assert error.value.key == "sampler.max_num_seqs"


def sixteen(*overrides: str):
    """The paper's run on two nodes of eight GPUs; each takes 24,000 tokens an update in micro-batches of 20,000."""
    sizes = ["trainer.memory.max_tokens_per_microbatch=20000", "trained_share=1"]
    return make_plan(composed("experiment=paper/table1_llama", "num_gpus=16", *sizes, *overrides))


def test_bytes_of_a_step_are_what_a_pencil_says():
    made = sixteen("trainer.memory.autocast=bfloat16")
    counted = Communication(made, 16)
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    rest = 2 * 128_256 * 4096 + 4096
    assert counted.microbatches == 2  # 32 x 16 answers of 750 tokens
    # Log-probabilities of a round: 2048 answers, 96,000 tokens a GPU, in 5 micro-batches for 4 updates.
    passes = made.rating_passes * 5 / 4
    layers, others = (2 * 2 + passes) * 32 * layer * 2, (2 + passes) * rest * 4
    gathered, scattered, between, synced = counted.exchanges()
    assert gathered.bytes == pytest.approx(15 / 16 * (layers + others))
    assert scattered.bytes == pytest.approx(15 / 16 * 2 * 8_030_261_248 * 4)
    assert between.bytes == 0
    assert synced.bytes == pytest.approx(15 / 16 * 8_030_261_248 * 4 / 4)
    assert counted.seconds(gathered) == pytest.approx(gathered.bytes / 50e9)  # over the slow link
    inside = Communication(made, 8)
    assert inside.exchanges()[2].bytes == pytest.approx(2 * 1 / 2 * 2 * 8_030_261_248 * 4 / 8)
    assert inside.seconds(inside.exchanges()[0]) == pytest.approx(7 / 8 * (layers + others) / 450e9)
    assert inside.seconds(inside.exchanges()[2]) == pytest.approx(inside.exchanges()[2].bytes / 50e9)


def test_replicas_pay_between_nodes_where_there_is_room():
    made = sixteen()
    now, then = Communication(made, 16).total_seconds(), Communication(made, 8).total_seconds()
    assert then < now / 3
    key = "trainer.memory.data_parallel_shard_degree"
    says = f"{key}=8 pays: {then:.2f} s of exchanges a step, and {now:.2f} s as it is."
    assert advise_on_replicas(made) == says
    chosen = sixteen(f"{key}=8")
    assert advise_on_replicas(chosen).startswith(f"{key}=null does not pay: {now:.2f} s")
    assert chosen.states()["weights"] == 2 * made.states()["weights"]
    fast = sixteen("link_gbs=5000")
    assert advise_on_replicas(fast).startswith(f"{key}=8 does not pay")
    assert "in one node" in advise_on_replicas(make_plan(composed("experiment=paper/table1_llama", "num_gpus=8")))
    tight = advise_on_replicas(sixteen("gpu_memory_gib=38"))
    assert tight.startswith(f"{key}=8 does not pay") and tight.endswith("GiB a GPU.")


@pytest.mark.parametrize("key", RULES)
def test_every_rule_is_about_a_key_of_the_plan(key):
    config = composed()
    assert key in config
    config[key] = "nonsense"
    with pytest.raises(ConfigError, match=f"{key}='nonsense'"):
        make_plan(config)


def test_the_script_prints_the_plan(tmp_path):
    result = run("scripts/plan.py", "experiment=paper/table1_llama", "num_gpus=8", folder=tmp_path)
    assert result.code == 0, result.stderr
    for part in (
        "8,030,261,248 parameters on 8 GPU(s)",
        "128 x 16 = 2,048",
        "2.05 epochs",
        "GPU-hours",
        "Assumed:",
        "receives in a step",
    ):
        assert part in result.stdout
    refused = run("scripts/plan.py", "experiment=paper/table1_llama", "num_gpus=3", folder=tmp_path)
    assert refused.code == 2 and refused.one_line().startswith("error: num_gpus=3: must be a divisor of")
