"""What end-to-end tests share: scripts in processes of their own, readers of run folders, and a model to train."""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from wandb.proto.wandb_internal_pb2 import Record

from hydra_plugins.lens_launcher import places_of
from lens.cli.sweep_progress import read_last_step
from lens.config.moved import MOVED_KEYS
from lens.models.loading import load_model
from lens.models.tiny import IGNORED, SEPARATOR, TinyRecipe, make_model, make_tokenizer
from lens.problems.worlds import arithmetic
from lens.runs.checkpoints import load_state, restore_optimizer
from lens.training.policy import make_optimizer
from tests.support.faults import kill_at
from tests.support.watching import be_watched

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 1200.0
LEARNT = 0.2  # the loss of the pupil, in nats a token

# A clean process that has imported everything once. A command is a fork of it, which saves the imports of each.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["lens.cli.entry_point", "lens.commands.train", "lens.reporting.report", "wandb.sdk.launch"]
)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def errors(self) -> list[str]:
        """The lines on stderr that say what cannot work."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]

    def one_line(self) -> str:
        """The only line on stderr, progress bars aside."""
        lines = [line for line in self.stderr.replace("\r", "\n").split("\n") if line.strip()]
        lines = [line for line in lines if "%|" not in line]
        assert len(lines) == 1, self.stderr
        return lines[0]


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without any W&B account and with no network; None removes a variable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "PYTEST"))}
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return {name: value for name, value in (kept | fixed | changes).items() if value is not None}


class Command:
    """A script of the repository, running beside the test in a session (and so a process group) of its own.

    Args:
        arguments: script and overrides, such as ``("scripts/train.py", "seed=1")``.
        folder: where its output is kept.
        real: start Python anew, as a shell does, and several processes by torchrun; else fork from the server.
        processes: how many processes run the script together.
        agents: torchrun's options that say how its agents meet; this is one of them, with so many processes.
        env: its whole environment.
        cwd: its working directory.
    """

    def __init__(
        self,
        *arguments: object,
        folder: Path,
        real: bool = False,
        processes: int = 1,
        agents: Sequence[str] = ("--standalone",),
        env: dict | None = None,
        cwd: Path = ROOT,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        script, *overrides = map(str, arguments)
        number = len(list(folder.glob("*.out")))
        self.stdout, self.stderr = folder / f"{number}.out", folder / f"{number}.err"
        env = environment() if env is None else env
        if real:
            torchrun = ["-m", "torch.distributed.run", *agents, f"--nproc-per-node={processes}"]
            with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
                streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
                command = [sys.executable, *(torchrun if processes > 1 else []), str(ROOT / script), *overrides]
                self.process = subprocess.Popen(command, **streams, env=env, cwd=cwd, start_new_session=True)
        else:
            self.stdout.touch()
            self.stderr.touch()  # it may be killed before it opens them
            files = str(self.stdout), str(self.stderr)
            self.process = SERVER.Process(target=run_script, args=(script, overrides, files, env, str(cwd), processes))
            self.process.start()

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None if isinstance(self.process, subprocess.Popen) else self.process.is_alive()

    def wait(self) -> Result:
        """Wait for its end; one that does not come is made."""
        in_time = wait_until(lambda: not self.is_running())
        if not in_time:
            self.signal(signal.SIGKILL)
        assert in_time, f"no end: {self.stderr.read_text()}"
        code = self.process.returncode if isinstance(self.process, subprocess.Popen) else self.process.exitcode
        return Result(code, self.stdout.read_text(), self.stderr.read_text())

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that the command does while it runs."""
        wait_until(lambda: happened() or not self.is_running())
        if not happened():
            raise AssertionError(f"it never happened: {self.wait()}")

    def signal(self, number: signal.Signals) -> None:
        """Signal its process group, as Ctrl-C does: the workers that it has started get it too.

        A command that has just been started may not have its group yet. One that ends meanwhile gets nothing.
        """
        wait_until(lambda: has_own_group(self.process.pid) or not self.is_running())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def has_own_group(process: int) -> bool:
    """Whether a process leads a process group; False where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(process) == process
    return False


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False where it does not within the time limit."""
    deadline = time.monotonic() + TIME_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def run(*arguments: object, folder: Path, **options: Any) -> Result:
    """Run a command to its end."""
    return Command(*arguments, folder=folder, **options).wait()


def run_script(
    script: str, overrides: list[str], files: tuple[str, str], env: dict[str, str], cwd: str, processes: int
) -> None:
    """Become ``python SCRIPT OVERRIDES``, with a session, streams, an environment and exit handlers of its own.

    Of several processes this one becomes the first, and the others are its children.
    """
    atexit._clear()  # the server's
    os.setsid()
    for file, descriptor in zip(files, (1, 2), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.environ.clear()
    os.environ.update(env)
    if address := os.environ.pop("WATCHED_BY", None):
        be_watched(address, alone=processes == 1)
    if processes > 1:
        first, *others = places_of(processes)
        os.environ.update(next((place for place in others if os.fork() == 0), first))
    os.chdir(cwd)
    sys.argv = [script, *overrides]
    if point := os.environ.pop("KILL_AT", None):
        kill_at(point)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def training(model: Path, outputs: Path, *overrides: object, **keys: object) -> list[object]:
    """A training run of a second or two: script and overrides; ``keys`` are of loss, optimizer or trainer."""
    sizes = {"max_steps": 4, "num_prompts_per_rollout": 4, "num_prompts_per_step": 4, "num_generations": 4}
    rhythm = {"checkpoint_every": 2, "keep_best": "null", "rollouts_every": 1, "grad_share_every": 2}
    return [
        "scripts/train.py",
        f"model.name_or_path={model}",
        f"outputs={outputs}",
        "tracking.wandb.mode=offline",
        "dataset.arithmetic.size=20",
        "evaluation.sets.arithmetic.split=train",
        "evaluation.sets.arithmetic.size=20",
        "evaluation.num_samples=4",
        "evaluation.every=2",
        "grader.timeout_s=60",  # a busy machine must not decide over verdicts
        "grader.num_workers=1",  # one starts faster than two
        *(f"{full_key(key)}={value}" for key, value in {**sizes, **rhythm, **keys}.items()),
        *overrides,
    ]


def full_key(name: str) -> str:
    """The dotted key of a loss, optimizer or trainer setting: learning_rate -> optimizer.learning_rate."""
    return MOVED_KEYS.get(f"trainer.{name}", f"trainer.{name}")


def make_pupil(folder: Path) -> Path:
    """A small model that knows the twenty problems of ``size=20 split=train`` by heart, some of them wrong.

    It was taught the right solution at Levels 1 and 2, a wrong one at Levels 4 and 5, and both at Level 3, so that its
    groups are positive, negative and mixed. It is left a little unsure, so that the answers of a group differ.
    """
    target = folder / "pupil"
    tokenizer = make_tokenizer()
    model = make_model(TinyRecipe(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2), tokenizer)
    ids, labels = [], []
    for problem in arithmetic.load("train", size=20):
        _, number, operands = problem["id"].split("/")
        template = arithmetic.TEMPLATES[int(number)]
        for procedure in {1: (0,), 2: (0,), 3: (0, 1), 4: (1,), 5: (1,)}[problem["level"]]:
            steps = arithmetic.steps_of(template.procedures[procedure], tuple(map(int, operands.split("-"))))
            prompt = [tokenizer.bos_token, *problem["problem"].split(), SEPARATOR]
            answer = [*arithmetic.write_solution(steps).split(), tokenizer.eos_token]
            ids.append(torch.tensor(tokenizer.convert_tokens_to_ids(prompt + answer)))
            labels.append(ids[-1].clone())
            labels[-1][: len(prompt)] = IGNORED
    ids = torch.nn.utils.rnn.pad_sequence(ids, True, tokenizer.pad_token_id)
    labels = torch.nn.utils.rnn.pad_sequence(labels, True, IGNORED)
    optimizer, loss = torch.optim.AdamW(model.parameters(), lr=5e-3), torch.tensor(torch.inf)
    while loss > LEARNT:  # some 45 updates, whatever the rounding or the first weights
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what differs from one machine, or moment, to another."""
    return [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_in(folder: Path) -> int:
    """The last step in the metrics.jsonl of a run folder, which may be running; 0 before there is one."""
    file = folder / "metrics.jsonl"
    return read_last_step(file) if file.exists() else 0


def without_times(line: dict[str, float]) -> dict[str, float]:
    """A line of metrics.jsonl but for what the machine decides."""
    return {name: value for name, value in line.items() if not name.startswith(("time/", "tokens_per"))}


def weights_of(folder: Path) -> bytes:
    """The weights of a run's last checkpoint."""
    return (sorted((folder / "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes()


def kept_weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """What the optimizer of a run in its folder updates, by the names of the weights: their masters, or themselves."""
    checkpoint = folder / "checkpoints" / f"step_{step:06d}"
    state = load_state(checkpoint)
    model, _ = load_model(str(checkpoint), dtype=state["config"]["model"]["dtype"])
    optimizer = make_optimizer(model, OmegaConf.create(state["config"]["optimizer"]))
    restore_optimizer(checkpoint, model, optimizer, state["param_groups"])
    return {name: optimizer.state[weight].get("master", weight).detach() for name, weight in model.named_parameters()}


def tables_of(outputs: Path, logs: Path) -> dict[str, bytes]:
    """The tables of a report on the sweep of the tiny experiment, but for times."""
    folder = outputs / "sweeps" / "tiny"
    assert run("scripts/report.py", f"runs={folder}", folder=logs).code == 0
    files = {name: folder / "report" / f"{name}.csv" for name in ("accuracy", "difference", "results", "signal")}
    timeless = pd.read_csv(files.pop("signal")).drop(columns=["s/step", "s/step half-width"]).to_csv()
    return {name: file.read_bytes() for name, file in files.items()} | {"signal": timeless.encode()}


def read_wandb(folder: Path) -> list[Record]:
    """The records of the offline W&B runs of a run folder, in the order in which they were started.

    A file is LevelDB's log format after a header of seven bytes: blocks of 32 KiB with records, or parts of them,
    behind a checksum (4 bytes), a length (2) and a type (1: 1 whole, 2 first, 3 middle, 4 last).
    """
    records = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        data, place, parts = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
            if place + 7 + length > len(data):
                break  # a kill has cut it
            parts += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                records.append(Record.FromString(parts))
                parts = b""
    return records


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """What W&B was fed, a dict for each call of ``log``."""
    items = [record.history.item for record in read_wandb(folder) if record.HasField("history")]
    return [{i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in item} for item in items]


def is_equal(a: object, b: object) -> bool:
    """Whether two nested states are the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return a == b


def assert_same_end(folder: Path, whole: Path) -> None:
    """Weights, optimizer, random states and every number that was measured are the same."""
    kept = [sorted(path.name for path in (f / "checkpoints").iterdir()) for f in (folder, whole)]
    assert kept[0] == kept[1]
    assert weights_of(folder) == weights_of(whole)
    assert metrics_of(folder) == metrics_of(whole)
    assert json.loads((folder / "summary.json").read_text()) == json.loads((whole / "summary.json").read_text())
    states = []
    for run_folder in (folder, whole):
        states.append(torch.load(run_folder / "checkpoints" / kept[0][-1] / "training_state.pt", weights_only=True))
        del states[-1]["wandb_run_id"], states[-1]["config"]
    assert is_equal(*states)
    # Tensors, as the order of the files' metadata is random.
    moments = [(f / "checkpoints" / kept[0][-1] / "optimizer").iterdir() for f in (folder, whole)]
    assert is_equal(*({file.name: load_file(file) for file in files} for files in moments))
    for kind in ("rollouts", "evaluations"):
        names = sorted(file.name for file in (whole / kind).iterdir())
        assert names == sorted(file.name for file in (folder / kind).iterdir())
        for name in names:
            pd.testing.assert_frame_equal(
                pd.read_parquet(folder / kind / name), pd.read_parquet(whole / kind / name), check_exact=True
            )


def assert_one_wandb_run(folder: Path) -> None:
    """All starts of a run fed one W&B run, with each line of metrics.jsonl once and under its number."""
    assert len({record.run.run_id for record in read_wandb(folder) if record.HasField("run")}) == 1
    fed = sorted(wandb_history(folder), key=lambda line: line["_step"])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [line["_step"] for line in fed] == list(range(len(lines)))
    hidden = ("_", "eval/completions")
    fed = [{name: value for name, value in line.items() if not name.startswith(hidden)} for line in fed]
    lines = [json.loads(line) for line in lines]
    # Times of a line that was fed before a kill are those of then.
    assert [without_times(line) for line in fed] == [without_times(line) for line in lines]
