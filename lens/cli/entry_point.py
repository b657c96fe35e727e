"""Wraps @hydra.main for the scripts, and prints errors that a user can fix as one line with exit code 2."""

from __future__ import annotations

import functools
import logging
import operator
import os
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lens.cli.explaining import BAD_CONFIG, explain
from lens.config.keys import hash_config
from lens.distributed.processes import exit_at_once, is_one_of_several, rank
from lens.errors import BAD_INPUT, FAILED, INTERRUPTED, NO_SPACE, ConfigError, RunFailed, StopRequested
from lens.files import CONFIGS
from lens.progress import close_open_bars

# Both are read when torch is imported. The first silences vllm's kernels. By the second, torch's threads sleep while
# they wait for each other: where a core has something else to do, small products else take ten times as long.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Hydra warns of the schemas that submitit's plug-in brings for its launchers.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.*' is validated against ConfigStore schema")
HALF_MADE = {".hydra"}  # what Hydra itself writes to a run folder, besides the log
SAYS = {FAILED: "failed", BAD_INPUT: "error", INTERRUPTED: "stopped"}
STARTED = [datetime.now()]
FIRST_SPEAKS_WITHIN = 30  # seconds in which the first of several processes meets the same error
ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")  # Hydra's options that exclude each other


def format_start_time(pattern: str) -> str:
    """Format the time at which this command started; it is the same in all its processes."""
    return STARTED[0].strftime(pattern)


def name_folder(*options: str | None) -> str:
    """Name the folder of a sweep by its experiment and world: tiny/paired is tiny_paired, not in the folder of tiny."""
    return "_".join(option.replace("/", "_") for option in options if option not in (None, "null"))


OmegaConf.register_new_resolver("lens.config_hash", hash_config, replace=True)
OmegaConf.register_new_resolver("lens.folder_name", name_folder, replace=True)
OmegaConf.register_new_resolver("lens.remainder", operator.mod, replace=True)
OmegaConf.register_new_resolver("lens.started", format_start_time, replace=True)


@contextmanager
def join_processes() -> Iterator[None]:
    """Connect the processes that were launched together, and share one start time, as long as the block runs."""
    if not is_one_of_several():
        STARTED[0] = datetime.now()
        yield
        return
    from lens.distributed.collectives import gather_objects, process_group

    with process_group():
        STARTED[0] = gather_objects(datetime.now())[0]
        yield


def name_submitit_tasks() -> None:
    """Set the variables by which the tasks of a job find each other, if submitit started several."""
    if "SUBMITIT_EXECUTOR" in os.environ and "WORLD_SIZE" not in os.environ:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorate a function that takes a composed config, as @hydra.main does, and print its errors as one line.

    Exit codes: 0 done; 1 the run cannot continue; 2 the config cannot work; 130 stopped by Ctrl-C or SIGTERM. If the
    run can be resumed, the last line gives the command.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        started: list[bool] = []

        @functools.wraps(task)
        def job(config: DictConfig) -> None:
            started.append(True)
            run_job(task, config, config_name)

        composed = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)

        @functools.wraps(task)
        def script() -> None:
            run_script(composed, config_name, started)

        return script

    return decorate


def run_job(task: Callable[[DictConfig], None], config: DictConfig, config_name: str) -> None:
    """Run a task with its composed config; a single run prints errors as one line, a sweep's job raises them.

    Raises:
        KeyboardInterrupt: a sweep's job was stopped. Launchers end the sweep, but do not count the job as failed.
    """
    hydra_config = HydraConfig.get()
    folder, alone = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.RUN
    if not alone:
        remove_console_logging()
        name_submitit_tasks()
    if rank() > 0:
        silence_logging()
    try:
        with nullcontext() if alone else join_processes():
            task(config)
    except BAD_CONFIG as error:
        if folder != Path.cwd():  # otherwise it is not a run folder
            remove_half_made(folder)
        if alone:
            exit_with(explain(error, config_name, sys.argv[1:]))
        raise
    except (StopRequested, KeyboardInterrupt) as stop:
        if alone:
            exit_with(f"{str(stop) or 'at once'}; to resume: {make_resume_command(hydra_config)}", INTERRUPTED)
        raise KeyboardInterrupt from stop
    except (RunFailed, OSError) as failure:
        if isinstance(failure, OSError) and failure.errno not in NO_SPACE:
            raise
        if alone:
            where = f" while writing below {folder}" if isinstance(failure, OSError) else ""
            exit_with(f"{failure}{where}; to resume: {make_resume_command(hydra_config)}", FAILED)
        raise


def run_script(composed: Callable[[], None], config_name: str, started: list[bool]) -> None:
    """Run a script, and print errors in the config or on the command line as one line.

    Args:
        composed: the function that @hydra.main made.
        config_name: the config that it composes.
        started: not empty once the task has its config. Other errors after that are the task's own, and are raised.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them
    sys.argv[1:] = put_options_first(sys.argv[1:])
    if is_one_of_several() and {"-m", "--multirun"} & set(sys.argv):
        exit_with("--multirun: not under torchrun; hydra.launcher.processes_per_job=N starts N for each job")
    try:
        with join_processes():
            composed()
        if is_one_of_several():
            exit_at_once()
    except BAD_CONFIG as error:
        exit_with(explain(error, config_name, sys.argv[1:]))
    except (StopRequested, KeyboardInterrupt) as stop:
        exit_with(str(stop) or "the same command resumes from the last checkpoint", INTERRUPTED)
    except RunFailed as failure:
        exit_with(f"{failure}; the same command resumes from the last checkpoint", FAILED)
    except ValueError as error:  # Hydra raises it if a required group is null
        if started:
            raise
        exit_with(" ".join(str(error).split()))
    except OSError as error:
        if started or error.filename is None:
            raise
        valid = f"must be a folder that can be written to ({error.strerror})"
        exit_with(str(ConfigError("outputs", error.filename, valid)))


def put_options_first(arguments: list[str]) -> list[str]:
    """Put Hydra's options before the overrides, the only order that Hydra takes; exit if Hydra would refuse them."""
    parser = get_args_parser()
    parser.error = exit_with
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.experimental_rerun:
        exit_with("--experimental-rerun: the same overrides with hydra.run.dir=FOLDER instead")
    asked = [f"--{name.replace('_', '-')}" for name in ONE_OF if getattr(parsed, name)]
    if len(asked) > 1:
        exit_with(f"{' and '.join(asked)}: one of them at a time")
    if parsed.resolve and not (parsed.cfg or parsed.help):
        exit_with("--resolve: with --cfg or --help only")
    options = [argument for argument in arguments if argument not in parsed.overrides]
    return [*options, *parsed.overrides]


def exit_with(message: str, code: int = BAD_INPUT) -> None:
    """Print one line, from the first process only, and exit."""
    close_open_bars()
    if rank() > 0 and code != INTERRUPTED:
        # torchrun kills all processes when one exits, so the first process has to print its line and exit first.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(FIRST_SPEAKS_WITHIN)
    elif rank() == 0:
        print(f"{SAYS[code]}: {message}", file=sys.stderr)
    sys.exit(code)


def make_resume_command(hydra_config: DictConfig) -> str:
    """Return the command that resumes this run in its folder."""
    overrides = [o for o in hydra_config.overrides.task if not o.startswith("resume=")]
    return shlex.join(["python", sys.argv[0], *overrides, f"hydra.run.dir={hydra_config.runtime.output_dir}"])


def remove_console_logging() -> None:
    """Stop logging to the console: jobs of a sweep log to their run folders, and the console shows the progress."""
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)


def silence_logging() -> None:
    """Stop all logging in this process: of several processes, only the first logs."""
    logging.getLogger().handlers[:] = [logging.NullHandler()]


def remove_half_made(folder: Path) -> None:
    """Remove a run folder that holds nothing but the config and the log, and parents that are then empty."""
    logs = {Path(h.baseFilename) for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)}
    if folder.is_dir() and all(path.name in HALF_MADE or path in logs for path in folder.iterdir()):
        shutil.rmtree(folder)
        for parent in list(folder.parents)[:2]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
