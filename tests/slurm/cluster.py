"""A private SLURM cluster on this machine: its daemons, their state and their logs, all below one folder.

``python -m tests.slurm.cluster`` starts one and says how to look at it; Ctrl-C ends it. Needs Debian's packages
slurm-wlm and munge; with slurmdbd and mariadb-server there is accounting, and so sacct.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.ports import free_ports

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
STARTS_WITHIN_S = 300.0  # on a busy machine
CPUS = 8  # of each node, whatever this machine has

# cred_expire is also what a job that was queued again waits before it starts; SLURM's default is two minutes.
CONFIG = """
ClusterName=private
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=20
MinJobAge=600
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
{accounting}
NodeName={first} NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs={cpus} RealMemory=10000
NodeName={second} NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs={cpus} RealMemory=10000
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdPort={database}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine lacks."""
    return [program for program in NEEDED if shutil.which(program) is None]


class Cluster:
    """Two nodes of eight cores each, partitions ``cpu`` and ``urgent``, whose jobs preempt those of ``cpu``.

    Attributes:
        folder: where everything lies.
        nodes: the names of the nodes. The first is this machine's, so that processes of a job find each other by it.
        env: what SLURM's commands need in their environment.
        has_accounting: whether sacct knows what happened.
    """

    def __init__(self, folder: Path):
        self.folder, self.host = folder.absolute(), socket.gethostname().split(".")[0]
        self.nodes = [self.host, f"{self.host}-second"]
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.has_accounting = os.environ.get("LENS_SLURM_ACCOUNTING") != "0" and all(map(shutil.which, ACCOUNTING))
        self.daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start every daemon, and wait until both nodes are idle."""
        self.write_config()
        self.start_munge()
        if self.has_accounting:
            self.start_accounting()
        self.start_daemon("slurmctld", "slurmctld", "-D", "-c")
        self.wait_for("slurmctld", lambda: self.ask("scontrol", "ping"))
        for node in self.nodes:
            self.start_node(node)
        for node in self.nodes:
            self.wait_for(f"slurmd of {node}", lambda node=node: self.state_of_node(node) == "idle")

    def write_config(self) -> None:
        """Write the configurations, with ports that are free now."""
        names = ("controller", "port_1", "port_2", "database", "storage")
        values = dict(zip(names, free_ports(len(names)), strict=True))
        values |= {"folder": self.folder, "host": self.host, "user": getpass.getuser(), "cpus": CPUS}
        values |= {"first": self.nodes[0], "second": self.nodes[1], "password": secrets.token_hex(16)}
        self.storage_port, self.password = values["storage"], values["password"]
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.has_accounting:
            accounting = "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost={host}\n"
            accounting += "AccountingStoragePort={database}\nAccountingStoragePass={folder}/munge/socket"
            (self.folder / "slurmdbd.conf").write_text(DATABASE.format(**values))
            (self.folder / "slurmdbd.conf").chmod(0o600)
        values["accounting"] = accounting.format(**values)
        (self.folder / "slurm.conf").write_text(CONFIG.format(**values))
        (self.folder / "state").mkdir()

    def start_munge(self) -> None:
        """Start munged with a key of its own."""
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        (folder / "key").touch(0o600)
        (folder / "key").write_bytes(secrets.token_bytes(1024))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self.start_daemon("munged", "munged", "--foreground", "--force", *options)
        self.wait_for("munged", (folder / "socket").exists)

    def start_accounting(self) -> None:
        """Start a database server of its own, and slurmdbd."""
        data, user = self.folder / "database", f"--user={getpass.getuser()}"
        quick = ["--skip-name-resolve", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M"]
        quick += ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--skip-innodb-doublewrite"]
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", user, "--skip-test-db", *quick]
        with (self.folder / "install-db.log").open("wb") as log:
            subprocess.run([*install, "--auth-root-authentication-method=normal"], stdout=log, stderr=log, check=True)
        create = self.folder / "create.sql"
        create.touch(0o600)
        create.write_text(
            f"CREATE DATABASE slurm;\nCREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            "GRANT ALL ON slurm.* TO slurm@'127.0.0.1';\n"
        )
        listening = [f"--port={self.storage_port}", "--bind-address=127.0.0.1", f"--socket={data}/socket"]
        files = [f"--datadir={data}", f"--pid-file={data}/pid", f"--init-file={create}"]
        self.start_daemon("mariadbd", "mariadbd", "--no-defaults", user, *listening, *files, *quick)
        self.wait_for("mariadbd", (data / "socket").exists)
        self.start_daemon("slurmdbd", "slurmdbd", "-D")
        self.wait_for("slurmdbd", lambda: self.ask("sacctmgr", "--noheader", "list", "cluster") is not None)
        self.ask("sacctmgr", "--immediate", "add", "cluster", "private")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self.start_daemon(node, "slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """Kill the daemon of a node and all that its jobs run there, as when a machine is lost."""
        stop_daemon(self.daemons.pop(node), signal.SIGKILL)
        mine = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.env['SLURM_CONF']}".encode()}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mine <= set((process / "environ").read_bytes().split(b"\0")):
                    os.kill(int(process.name), signal.SIGKILL)

    def start_daemon(self, name: str, *command: str) -> None:
        """Start a program that runs until the cluster ends; it writes to a log of its name."""
        with (self.folder / f"{name}.out").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            env = {**os.environ, **self.env}
            self.daemons[name] = subprocess.Popen(command, **streams, env=env, start_new_session=True)

    def wait_for(self, what: str, happened: Callable[[], bool]) -> None:
        """Wait until something holds; where it does not in time, say so with the logs."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not happened():
            if time.monotonic() > deadline:
                logs = {file.name: file.read_text(errors="replace")[-2000:] for file in self.folder.glob("*.[lo][ou]*")}
                raise RuntimeError(f"{what} did not start: {logs}")
            time.sleep(0.2)

    def ask(self, *command: str) -> str | None:
        """What one of SLURM's commands prints; None where it fails."""
        result = subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None

    def state_of_node(self, node: str) -> str | None:
        """The state of a node, such as idle or down*."""
        return self.ask("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T", "--partition=cpu")

    def end(self) -> None:
        """End all jobs and all daemons."""
        if self.ask("scontrol", "ping"):
            self.ask("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
            self.ask("scancel", f"--user={getpass.getuser()}")
            deadline = time.monotonic() + STARTS_WITHIN_S
            while self.ask("squeue", "--noheader") and time.monotonic() < deadline:
                time.sleep(0.2)
        for name, daemon in reversed(self.daemons.items()):
            stop_daemon(daemon, signal.SIGKILL if name in self.nodes else signal.SIGTERM)


def stop_daemon(daemon: subprocess.Popen, number: signal.Signals) -> None:
    """Signal a daemon, and kill it where it does not end."""
    daemon.send_signal(number)
    try:
        daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


@contextlib.contextmanager
def private_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that runs as long as the block does."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


def main() -> None:
    """Start a cluster, and end it on Ctrl-C."""
    if lacking := missing():
        raise SystemExit(f"error: there is no {', '.join(lacking)} (Debian: slurm-wlm munge slurmdbd mariadb-server)")
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, private_cluster(Path(folder)) as cluster:
        print(f"export SLURM_CONF={cluster.env['SLURM_CONF']}")
        print("# then sinfo, squeue, sacct, or a sweep with hydra/launcher=submitit_slurm")
        print("# Ctrl-C here ends the cluster")
        over.wait()


if __name__ == "__main__":
    main()
