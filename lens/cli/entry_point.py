"""The command line around Hydra: errors that a user can mend are one line and exit code 2."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import shutil
import signal
import sys
import time
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

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported: vllm's kernels warn of nothing new
HALF_MADE = {".hydra"}  # what Hydra itself puts into a run folder, beside the log
SAYS = {FAILED: "failed", BAD_INPUT: "error", INTERRUPTED: "stopped"}
STARTED = [datetime.now()]
FIRST_SPEAKS_WITHIN = 30  # seconds in which the first of several processes comes to the same error
ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")  # Hydra's options that say what to do


def format_start_time(pattern: str) -> str:
    """The time at which this command was started, one for all its processes."""
    return STARTED[0].strftime(pattern)


OmegaConf.register_new_resolver("lens.config_hash", hash_config, replace=True)
# The folder of an experiment's sweep: tiny/paired -> tiny_paired, so that it does not lie in the folder of tiny.
OmegaConf.register_new_resolver("lens.folder_name", lambda option: str(option).replace("/", "_"), replace=True)
OmegaConf.register_new_resolver("lens.started", format_start_time, replace=True)


@contextmanager
def join_processes() -> Iterator[None]:
    """Meanwhile the processes that were launched together know of each other, and of the time at which they started."""
    if not is_one_of_several():
        STARTED[0] = datetime.now()
        yield
        return
    from lens.distributed.collectives import gather_objects, process_group

    with process_group():
        STARTED[0] = gather_objects(datetime.now())[0]
        yield


def name_submitit_tasks() -> None:
    """Where submitit has started several tasks of a job, set the variables by which they find each other."""
    if "SUBMITIT_EXECUTOR" in os.environ and "WORLD_SIZE" not in os.environ:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorate a function of a composed config as a script: @hydra.main, with errors as lines.

    Exit codes: 0 done; 1 the run cannot go on; 2 the config cannot work; 130 stopped by Ctrl-C or SIGTERM. Where the
    run can be resumed, the last line says how.
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
    """Run a task with its composed config; a single run turns errors into lines, a sweep's job raises them.

    Raises:
        KeyboardInterrupt: a sweep's job was stopped; launchers count it as no failed job, but end the sweep.
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
        if folder != Path.cwd():  # else it is no run's own folder
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
    """Run a script as Hydra composes it; errors in the config or the command line become one line.

    Args:
        composed: what @hydra.main made.
        config_name: the config that it composes.
        started: not empty once the task has a config; what it raises from then on is its own fault.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach the lines below
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
    except (StopRequested, KeyboardInterrupt):
        exit_with("the same command resumes from the last checkpoint", INTERRUPTED)
    except RunFailed as failure:
        exit_with(f"{failure}; the same command resumes from the last checkpoint", FAILED)
    except ValueError as error:  # of Hydra, where a group that has to be chosen is null
        if started:
            raise
        exit_with(" ".join(str(error).split()))
    except OSError as error:
        if started or error.filename is None:
            raise
        exit_with(str(ConfigError("outputs", error.filename, f"a folder that can be written to ({error.strerror})")))


def put_options_first(arguments: list[str]) -> list[str]:
    """Put Hydra's options before the overrides, in the only order that Hydra takes; exit if it would not take them."""
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
    """Print one line, once for all processes, and exit."""
    close_open_bars()
    if rank() > 0 and code != INTERRUPTED:
        # torchrun ends all at the first that exits: that has to be the one that speaks.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(FIRST_SPEAKS_WITHIN)
    elif rank() == 0:
        print(f"{SAYS[code]}: {message}", file=sys.stderr)
    sys.exit(code)


def make_resume_command(hydra_config: DictConfig) -> str:
    """The command that goes on in the folder of this one."""
    overrides = [o for o in hydra_config.overrides.task if not o.startswith("resume=")]
    return shlex.join(["python", sys.argv[0], *overrides, f"hydra.run.dir={hydra_config.runtime.output_dir}"])


def remove_console_logging() -> None:
    """Jobs of a sweep log to their run folders alone: the console shows the sweep's progress."""
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)


def silence_logging() -> None:
    """One process of several logs for all."""
    logging.getLogger().handlers[:] = [logging.NullHandler()]


def remove_half_made(folder: Path) -> None:
    """Remove a run folder in which nothing but the config and the log has been written yet."""
    logs = {Path(h.baseFilename) for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)}
    if folder.is_dir() and all(path.name in HALF_MADE or path in logs for path in folder.iterdir()):
        shutil.rmtree(folder)
        for parent in list(folder.parents)[:2]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
