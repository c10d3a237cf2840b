"""A SLURM of one node on this machine: its own key, configuration, ports and state, all in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

CONFIGURATION = """
ClusterName=anban
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again (120 s by default).
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_for(what: str, true: Callable[[], object], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError(f"no {what} within {seconds:.0f} s")
        time.sleep(0.1)


class Cluster:
    """munged, slurmctld and slurmd, started and stopped; run as root."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        text = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            controller=free_port(),
            node=free_port(),
            folder=self.folder,
        )
        (self.folder / "slurm.conf").write_text(text)
        subprocess.run(["mungekey", "--create", f"--keyfile={self.folder / 'munge.key'}"], check=True)
        own = [f"--{name}-file={self.folder / f'munge.{name}'}" for name in ("key", "log", "pid", "seed")]
        # --force: the folder lies below one that others may write to.
        self._daemon("munged", "--foreground", "--force", f"--socket={self.folder / 'munge.socket'}", *own)
        wait_for("munge", (self.folder / "munge.socket").exists, 20)
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        wait_for("idle node", lambda: self.ask("sinfo", "--noheader", "--format=%T") == "idle", 60)

    def stop(self) -> None:
        if len(self.daemons) == 3:
            self.ask("scancel", "--user=root")
            wait_for("end of the jobs", lambda: not self.ask("squeue", "--noheader"), 60)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(30)

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def _daemon(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, f"{name} is not installed: make test-slurm installs it (Debian)"
        with open(self.folder / f"{name}.out", "wb") as log:
            self.daemons.append(
                subprocess.Popen([program, *arguments], env=self.environment, stdout=log, stderr=log)
            )
