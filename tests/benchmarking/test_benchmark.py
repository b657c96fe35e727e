"""The benchmark: its numbers are those of its rows, both sides do the same work, and its instruments measure."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lens.benchmarking.arm import ArmProcess
from lens.benchmarking.benchmark import MEASUREMENTS, PARTS, TABLE, benchmark
from lens.benchmarking.measuring import (
    alternate,
    count_training_flops,
    format_paired_ratio,
    format_share,
    measure_matrix_peaks,
    take_medians,
)
from lens.benchmarking.meter import Meter, PrivateMemory, TensorMemory
from lens.benchmarking.naive_update import naive_gradient
from lens.benchmarking.scaling import draw_scaling
from lens.benchmarking.trl import check_trl
from lens.benchmarking.workload import Workload, make_every_answer_teach, make_up_rollouts
from lens.errors import ConfigError
from lens.models.loading import load_model
from lens.training.update import compute_gradient
from tests.support.arms import dies, fails, is_killed
from tests.support.benchmarks import ROUNDS, SMALL, composed
from tests.support.command_line import ROOT, environment, run
from tests.support.gradients import norms_in_their_own_type
from tests.support.rounding import TOLERANCE


@pytest.fixture
def work(tiny_folder: Path) -> Workload:
    return Workload.load(composed(tiny_folder, "part=update"))


@pytest.fixture(scope="module")
def measured(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """part -> the folder that it left, made once."""
    made: dict[str, Path] = {}

    def measure(part: str) -> Path:
        if part not in made:
            made[part] = tmp_path_factory.mktemp(part)
            arms = "[transformers,vllm]" if part == "sampling" else "[transformers]"
            benchmark(composed(tiny_folder, f"part={part}", f"arms={arms}"), made[part])
        return made[part]

    return measure


def read(folder: Path) -> dict:
    return json.loads((folder / MEASUREMENTS).read_text())


def median_of(rows: list[dict], arm: str, value: str) -> float:
    return statistics.median(row[value] for row in rows if row["arm"] == arm)


def middle_ratio(rows: list[dict], value: str, arm: str, other: str) -> float:
    of = {name: {row["round"]: row[value] for row in rows if row["arm"] == name} for name in (arm, other)}
    return statistics.median(of[arm][number] / of[other][number] for number in range(ROUNDS))


@pytest.mark.parametrize("part", [pytest.param(part, marks=pytest.mark.slow) for part in PARTS])
def test_each_part_leaves_its_rows_and_the_table_that_they_make(part, measured, capsys):
    folder = measured(part)
    found = read(folder)
    assert found["part"] == part and found["config"]["trainer"]["rollouts"]["num_generations"] == 4
    assert found["machine"]["before"]["threads"] >= 1
    peaks = found["machine"]["matrix_peak_flops_per_s"]
    assert set(peaks) == {"bfloat16", "float32"} and min(peaks.values()) > 0
    counted = pd.DataFrame(found["rows"]).groupby("arm")["round"].agg(list)
    assert all(rounds == list(range(ROUNDS)) for rounds in counted)
    again = PARTS[part].table(found["rows"], peaks)
    pd.testing.assert_frame_equal(again.astype(str), pd.read_csv(folder / TABLE, dtype=str))
    assert json.loads((folder / "provenance.json").read_text())["packages"]["torch"] == torch.__version__


@pytest.mark.slow
def test_the_table_of_engines_holds_medians_of_paired_ratios(measured):
    rows = read(measured("sampling"))["rows"]
    table = pd.read_csv(measured("sampling") / TABLE).set_index("engine")
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(row["completion_tokens"] / row["sample_s"])
        assert 0 < row["completion_tokens"] <= 2 * 4 * 12
    for arm in ("transformers", "vllm"):
        assert table.loc[arm, "seconds"] == pytest.approx(median_of(rows, arm, "sample_s"), abs=0.006)
        ratio = middle_ratio(rows, "tokens_per_s", arm, "transformers")
        assert float(table.loc[arm, "times transformers"].split()[0]) == pytest.approx(ratio, abs=0.006)


def test_the_table_of_steps_splits_each_into_its_phases(measured):
    rows = read(measured("step"))["rows"]
    (line,) = pd.read_csv(measured("step") / TABLE).to_dict("records")
    phases = {"sync": "sync_s", "sampling": "sample_s", "grading": "grade_s", "log-probs": "logprobs_s"}
    for row in rows:
        assert sum(row[f"{name}_s"] for name in ("sync", "sample", "grade", "logprobs", "update")) == pytest.approx(
            row["step_s"]
        )
    for name, column in phases.items():
        assert line[name] == pytest.approx(median_of(rows, "lens, transformers", column), abs=0.006)
    assert line["peak GiB"] > 0.05


@pytest.mark.slow
def test_the_table_of_updates_compares_with_the_naive_one_and_counts_less_work_where_groups_are_silent(measured):
    rows, peaks = (found := read(measured("update")))["rows"], found["machine"]["matrix_peak_flops_per_s"]
    table = pd.read_csv(measured("update") / TABLE).set_index("update")
    naive, lens, silent, compiled = table.index
    for arm in table.index:
        ratio = middle_ratio(rows, "update_s", "naive", arm)
        assert float(table.loc[arm, "naive / this"].split()[0]) == pytest.approx(ratio, abs=0.006)
        speed = median_of(rows, arm, "update_flops") / median_of(rows, arm, "update_s")
        assert float(table.loc[arm, "share of peak"].split()[0]) == pytest.approx(
            100 * speed / peaks["float32"], abs=0.06
        )
    flops = {arm: median_of(rows, arm, "update_flops") for arm in table.index}
    assert flops[lens] == flops[compiled]
    assert flops[naive] > flops[lens] > 1.5 * flops[silent]  # lens shares passes over prompts; one of two is silent


@pytest.mark.slow
def test_every_size_is_measured_and_drawn(measured, tmp_path):
    rows = read(measured("scaling"))["rows"]
    sizes = {(row["axis"], row["value"]) for row in rows}
    assert sizes == {
        ("num_generations", 2),
        ("max_completion_length", 6),
        ("num_layers", 1),
        ("num_layers", 2),
        ("vocab_size", 32),
    }
    of_axis = {row["value"]: row for row in rows if row["axis"] == "num_layers"}
    assert of_axis[2]["parameters"] > of_axis[1]["parameters"]
    assert draw_scaling(rows, tmp_path / "figure.png").stat().st_size > 10_000


def test_exponents_of_growth_stand_under_their_sizes():
    seconds = {4: 3.0, 8: 3.0 * 2**1.5, 16: 3.0 * 4**1.5}  # 3 (size / 4)^1.5
    rows = [
        {"arm": f"num_layers={size}", "axis": "num_layers", "value": size, "round": 0, "parameters": 1e6}
        | {"step_s": step, "update_s": 2.0, "update_gib": 0.0 if size == 4 else 1.0}
        for size, step in seconds.items()
    ] + [{"arm": "vocab_size=8", "axis": "vocab_size", "value": 8, "round": 0, "parameters": 1e6, "step_s": 1.0}]
    table = PARTS["scaling"].table(rows, {})
    assert list(table["to"]) == ["4", "8", "16", "exponent", "8"]
    exponents = table[table["to"] == "exponent"].iloc[0]
    assert (exponents["step s"], exponents["update"], exponents["update GiB"]) == ("1.50", "0.00", "nan")


@pytest.mark.slow
def test_without_an_engine_the_update_alone_grows(tiny_folder, tmp_path):
    small = ["part=scaling", "scaling.sampled=false", "scaling.num_layers=[]", "scaling.vocab_size=[32]"]
    rows = PARTS["scaling"].measure(composed(tiny_folder, *small))
    assert {row["axis"] for row in rows} == {"num_generations", "max_completion_length", "vocab_size"}
    for row in rows:
        assert row["step_s"] == row["update_s"] > 0
        assert row["completion_tokens"] == 2 * row["num_generations"] * row["max_completion_length"]
    table = PARTS["scaling"].table(rows, {})
    assert not {"sampling", "log-probs"} & set(table.columns) and "update GiB" in table.columns
    assert draw_scaling(rows, tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_what_lens_costs_is_its_passes_over_negative_groups(measured):
    rows = read(measured("objective"))["rows"]
    by_round = {(row["arm"], row["round"]): row for row in rows}
    for number in range(ROUNDS):
        grpo, lens = by_round["grpo", number], by_round["lens", number]
        assert grpo["groups_negative"] == lens["groups_negative"]
        extra = lens["completions_trained"] - grpo["completions_trained"]
        assert 0 <= extra <= 4 * lens["groups_negative"]
    table = pd.read_csv(measured("objective") / TABLE).set_index("objective")
    for arm in ("grpo", "lens"):
        own = [row for row in rows if row["arm"] == arm]
        share = 100 * sum(row["advantages_s"] for row in own) / sum(row["step_s"] for row in own)
        assert float(table.loc[arm, "of the step"].split()[0]) == pytest.approx(share, abs=6e-5)


# --- the naive update ------------------------------------------------------------------------------------------------


def flat_gradient(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()


@pytest.mark.slow
def test_a_process_takes_memory_for_its_part_and_a_layer(measured):
    """Of so small a model a process writes its part at once, and takes 20 MB that do not depend on the model."""
    rows = read(measured("memory"))["rows"]
    for row in rows:
        assert row["whole_gib"] * 2**30 == 4 * (2 * 8000 * 512 + 4 * (4 * 512**2 + 3 * 512 * 1365 + 1024) + 512)
        assert row["layer_gib"] * 2**30 == 4 * 8000 * 512
        assert row["bar_gib"] == pytest.approx(1.3 * (row["whole_gib"] / row["processes"] + row["layer_gib"]))
        assert len(row["peaks_gib"]) == row["processes"] and row["peak_gib"] == max(row["peaks_gib"])
        share = row["whole_gib"] / row["processes"]
        assert share < row["peak_gib"] < (1 if row["processes"] == 1 else 2) * share + row["layer_gib"] + 20 / 1024


def wait_for_a_look(memory: PrivateMemory) -> None:
    """Wait until its thread has looked once from the beginning, however busy the machine is."""
    before = memory.looks
    while memory.looks < before + 2:
        time.sleep(0.001)


def test_private_memory_is_what_a_block_took_and_gave_back(tmp_path):
    size = 64 * 2**20
    (tmp_path / "mapped").write_bytes(b"0" * size)
    with PrivateMemory() as taken:
        block = torch.ones(size, dtype=torch.uint8)
        wait_for_a_look(taken)
        del block
    with PrivateMemory() as mapped:
        kept = torch.from_file(str(tmp_path / "mapped"), size=size, dtype=torch.uint8)
        assert kept.max() > 0
        wait_for_a_look(mapped)
    assert taken.above == pytest.approx(size / 2**30, rel=0.1)
    assert mapped.above < 0.1 * size / 2**30


@pytest.mark.parametrize("loss", ["ppo_clip", "gmpo"])
def test_the_naive_update_and_ours_have_the_same_gradient(tiny_folder, loss):
    work = Workload.load(composed(tiny_folder, "part=update", "model.dtype=float64", f"loss={loss}"))
    norms_in_their_own_type(work.model)
    rollouts = make_up_rollouts(work, shortest_share=0.25)
    assert len(set(rollouts.lengths.tolist())) > 4
    experience = make_every_answer_teach(rollouts)
    noise = 0.3 * torch.randn(rollouts.logprobs.shape, generator=torch.Generator().manual_seed(0))
    experience = replace(experience, old_logprobs=experience.old_logprobs + noise * rollouts.mask)
    clipped = compute_gradient(work.model, experience, work.loss, work.forward_pass)
    assert clipped["clip_ratio/low_mean"] > 0 and clipped["clip_ratio/high_mean"] > 0
    ours = flat_gradient(work.model)
    for sequences in (3, 8):
        naive_gradient(work.model, experience, work.loss, work.forward_pass, sequences=sequences)
        assert (flat_gradient(work.model) - ours).norm() < TOLERANCE["float64"] * ours.norm()


def test_every_answer_teaches(work):
    experience = make_every_answer_teach(make_up_rollouts(work))
    assert (experience.advantages != 0).all()
    assert compute_gradient(work.model, experience, work.loss, work.forward_pass)["completions/trained"] == 8


def test_made_up_logprobs_are_the_policys_and_lengths_are_spread(work):
    rollouts = make_up_rollouts(work, shortest_share=0.5)
    assert torch.equal(rollouts.logprobs, work.logprobs(rollouts)) and (rollouts.logprobs[rollouts.mask] < 0).all()
    assert rollouts.lengths.min() == 6 and rollouts.lengths.max() == 12


# --- instruments -----------------------------------------------------------------------------------------------------


def test_a_meter_sees_memory_that_a_phase_took_and_gave_back():
    meter = Meter()
    with meter.phase("large"):
        torch.ones(64 * 2**20)  # 0.25 GiB
    with meter.phase("small"):
        torch.ones(1)
    row = meter.row()
    assert 0.2 < row["large_gib"] < 0.4 and row["small_gib"] < 0.05
    assert row["peak_gib"] > row["large_gib"] and row["large_s"] > 0


def test_memory_of_tensors_is_what_was_there_at_once():
    with TensorMemory() as memory:
        kept = torch.ones(2**18)  # 1 MiB
        for _ in range(3):
            torch.ones(2**19)  # 2 MiB, and gone
    assert kept.numel() and memory.above == pytest.approx(3 / 1024, rel=0.01)


def test_arms_take_turns_and_warm_up_unseen():
    calls = []

    def arm(name: str):
        return lambda number: calls.append((name, number)) or {"s": {"a": 2.0, "b": 1.0}[name] * (number + 1)}

    rows = alternate({"a": arm("a"), "b": arm("b")}, rounds=2, warmup=1)
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [(row["arm"], row["round"]) for row in rows] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert take_medians(rows).loc["a", "s"] == 5.0
    assert format_paired_ratio(rows, "s", "a", "b") == "2.00 [2.00, 2.00]"


def test_flops_are_those_that_torch_counts(tiny_folder):
    """Sequences of one token, where every pair that attention computes is one that counts."""
    model = load_model(str(tiny_folder))[0]
    model.set_attn_implementation("eager")
    ids = torch.arange(7)[:, None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    counted = count_training_flops(model, [(0, [1])] * 7, body="float32", head="float32")
    assert counted["update_flops"] == counted["update_flops_float32"]
    assert counted["update_flops"] == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_flops_of_shared_prompts_by_hand(tiny_folder):
    model = load_model(str(tiny_folder))[0]
    config, weights = model.config, model.base_model.num_parameters(exclude_embeddings=True)
    pairs = (1 + 2 + 3) + (4 + 5) + 4  # a prompt of 3, completions of 2 and 1
    attention = 4 * pairs * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    head = 2 * 3 * config.hidden_size * config.vocab_size
    assert count_training_flops(model, [(3, [2, 1])], body="bfloat16", head="float32") == {
        "update_flops": 3 * (2 * 6 * weights + attention + head),
        "update_flops_bfloat16": 3 * (2 * 6 * weights + attention),
        "update_flops_float32": 3 * head,
    }


def test_a_frozen_weight_costs_no_gradient_of_its_own(tiny_folder):
    model = load_model(str(tiny_folder))[0].requires_grad_(False)
    trained = model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    config, weights = model.config, model.base_model.num_parameters(exclude_embeddings=True)
    attention = 4 * 3 * config.num_hidden_layers * config.num_attention_heads * config.head_dim  # pairs of 2 tokens
    body = 4 * 2 * weights + 2 * 2 * trained.numel() + 3 * attention
    head = 4 * config.hidden_size * config.vocab_size
    assert count_training_flops(model, [(1, [1])], body="bfloat16", head="bfloat16")["update_flops"] == body + head


def test_the_share_of_the_peak_is_that_of_the_types_that_an_update_ran_in():
    peaks = {"bfloat16": 100.0, "float32": 10.0}
    mixed = pd.Series({"update_flops_bfloat16": 200.0, "update_flops_float32": 10.0, "update_s": 6.0})
    assert format_share(mixed, peaks) == "50.0 %"  # 2 s and 1 s at the peak, of 6 s
    assert format_share(pd.Series({"update_flops_float32": 30.0, "update_s": 6.0}), peaks) == "50.0 %"


def test_matrix_peaks_are_plausible():
    peaks = measure_matrix_peaks(32, ["bfloat16", "float32", "float64"])
    assert list(peaks) == ["bfloat16", "float32", "float64"]
    assert all(1e6 < peak < 1e17 for peak in peaks.values())


def test_the_peak_is_measured_within_seconds_where_bfloat16_is_slow():
    """A single product of two 4096 x 4096 matrices takes over a minute there."""
    script = (
        "import time; from lens.benchmarking.measuring import measure_matrix_peaks;"
        "started = time.process_time(); peaks = measure_matrix_peaks(4096, ['bfloat16']);"
        "print(time.process_time() - started, peaks['bfloat16'])"
    )
    slow = environment(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="AVX2", OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=slow, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, peak = map(float, result.stdout.split())
    assert seconds < 20 and peak > 1e6
    assert "Measuring the peak of this machine" in result.stderr and "bfloat16, 256 x 256" in result.stderr


def test_what_ends_an_arm_reaches_the_parent():
    arm = ArmProcess("a", fails)
    assert arm.receive() == {}
    with pytest.raises(ConfigError, match="key='value': another"):
        arm(0)
    arm.close()
    arm = ArmProcess("a", dies)
    with pytest.raises(ConfigError, match=r"arms='a': .* exit code 7"):
        arm.receive()
    arm.close()
    assert not arm.process.is_alive()


@pytest.mark.parametrize(("fatal", "kept"), [(4, [0, 0, 1, 1]), (1, None)])
def test_whole_rounds_outlive_an_arm(caplog, fatal, kept):
    arms = {"a": ArmProcess("a", is_killed, 99), "b": ArmProcess("b", is_killed, fatal)}
    for arm in arms.values():
        arm.receive()
    try:
        if kept is None:
            with pytest.raises(ConfigError, match=r"arms='b': .* SIGKILL; too little memory"):
                alternate(arms, rounds=9, warmup=1)
        else:
            assert [row["round"] for row in alternate(arms, rounds=9, warmup=2)] == kept
            assert "SIGKILL; too little memory?; keeping the 2 rounds before it" in caplog.text
    finally:
        for arm in arms.values():
            arm.close()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["part=speed"], "part='speed': must be one of sampling, step, update, scaling, objective, memory, plan"),
        (
            ["part=step", "arms=[verl]"],
            "arms=['verl']: must be a list of distinct names, out of transformers, vllm, trl, trl_vllm",
        ),
        (["part=step", "arms=[]"], "arms=[]: "),
        (["part=sampling", "arms=[trl]"], "arms=['trl']: must begin with a rollout engine"),
        (["part=memory", "memory.processes=[2,0]"], "memory.processes=[2, 0]: must be a list of integers >= 1"),
        (["part=step", "rounds=0"], "rounds=0: must be an integer >= 1"),
        (["part=update", "made_up.shortest_share=0"], "made_up.shortest_share=0: must be a share in (0, 1]"),
    ],
)
def test_what_cannot_work_is_refused(tiny_folder, tmp_path, overrides, line):
    with pytest.raises(ConfigError) as error:
        benchmark(composed(tiny_folder, *overrides), tmp_path)
    assert str(error.value).startswith(line)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_trl_does_not_compute_is_refused(tiny_folder):
    with pytest.raises(
        ConfigError, match=r"loss\._target_='lens\.losses\.gspo_loss': must be .* unless arms leaves out"
    ):
        check_trl(composed(tiny_folder, "part=step", "loss=gspo"))


@pytest.mark.skipif(find_spec("trl") is not None, reason="TRL is installed, and so not missed")
def test_trl_is_refused_before_anything_is_measured(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # to be as it was
    with pytest.raises(ConfigError, match=r"trl\.path=None: must be a folder with TRL"):
        check_trl(composed(tiny_folder, "part=step"))
    with pytest.raises(ConfigError, match=r"trl\.path='.*': must be a folder with TRL"):
        check_trl(composed(tiny_folder, "part=step", f"trl.path={tmp_path}"))
    (tmp_path / "it" / "trl").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"trl\.per_device_train_batch_size=3: must be a divisor of 8"):
        check_trl(
            composed(tiny_folder, "part=step", f"trl.path={tmp_path / 'it'}", "trl.per_device_train_batch_size=3")
        )


def test_the_command_names_what_is_wrong_in_a_line(tmp_path, logs):
    result = run("scripts/benchmark.py", "part=speed", f"outputs={tmp_path / 'outputs'}", folder=logs)
    assert result.code == 2
    assert result.one_line().startswith("error: part='speed': must be one of ")
    assert not list(tmp_path.glob("outputs/**/*.*"))


@pytest.mark.slow
def test_without_a_compiler_the_compiled_update_is_left_out_and_the_config_refused(tiny_folder, tmp_path, logs):
    outputs = tmp_path / "outputs"
    env = environment(CXX="/nonexistent/c++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    command = ["scripts/benchmark.py", "part=update", *SMALL, f"model.name_or_path={tiny_folder}", f"outputs={outputs}"]
    result = run(*command, folder=logs / "left_out", real=True, env=env)
    assert result.code == 0, result.stderr
    assert (
        "Leaving out lens with torch.compile: trainer.memory.torch_compile=True: must be false, unless the machine"
        in result.stdout
    )
    (table,) = outputs.glob("benchmarks/*/" + TABLE)
    assert [name.split(",")[0] for name in pd.read_csv(table)["update"]] == ["naive", "lens", "lens"]
    result = run(
        *command, "trainer.memory.torch_compile=true", f"outputs={outputs}", folder=logs / "refused", real=True, env=env
    )
    assert result.code == 2
    assert result.stderr.splitlines()[-1].startswith(
        "error: trainer.memory.torch_compile=True: must be false, unless the machine"
    )
    assert "Traceback" not in result.stdout + result.stderr
