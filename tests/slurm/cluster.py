"""A real SLURM on this machine, for tests: no systemd, no cgroups, nothing outside of one folder.

munged, slurmctld and one slurmd for each virtual node, with GPUs that are links to ``/dev/null``.
By hand, from the root of the repository::

    python tests/slurm/cluster.py /tmp/slurm     # prints what to `source`; Ctrl-C stops it

Needs the packages munge, slurmctld, slurmd and slurm-client (Debian, Ubuntu), but not to be root.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

NODES = 2
GPUS = 3  # of each node

AT_ONCE = Path(__file__).with_name("at_once.py")
"""Snakemake that does not wait before it submits and looks."""

_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_DAEMONS = ("munged", "slurmctld", "slurmd")
_CLIENTS = ("sbatch", "srun", "squeue", "sinfo", "scancel", "scontrol")
_SECONDS = 120.0

# The nodes claim more CPUs and memory than the machine has. Finished jobs stay in squeue for
# MinJobAge seconds; the plugin asks for at least 3 x slurm-init-seconds-before-status-checks.
_SLURM_CONF = """\
ClusterName=loopback
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1
CompleteWait=0
KillWait=2
InactiveLimit=0
ReturnToService=2
MinJobAge=3600
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = (
    "NodeName={node} NodeHostname={host} NodeAddr={address} Port={port} "
    "CPUs=64 RealMemory=1000000 Gres=gpu:{gpus} State=UNKNOWN"
)


def missing_programs() -> list[str]:
    """What of SLURM is not installed here."""
    return [name for name in (*_DAEMONS, *_CLIENTS) if shutil.which(name, path=_PATH) is None]


class Cluster:
    """A SLURM with :data:`NODES` nodes of :data:`GPUS` GPUs each, started in ``folder``.

    Ends with the process that started it, however that ends.

    Raises :class:`RuntimeError` with the daemons' logs if it does not come up.

    Attributes:
        environment: Variables with which SLURM's commands and Snakemake find this cluster.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        nodes = [f"node{number}" for number in range(1, NODES + 1)]
        for name in ("bin", "state", *(f"spool.{node}" for node in nodes)):
            (folder / name).mkdir(parents=True)
        self._configure(nodes)
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin:{_PATH}",
        }
        try:
            socket_option = f"--socket={folder}/munge.socket"
            self._start(
                *("munged", "--foreground", "--force", f"--key-file={folder}/munge.key"),
                *(socket_option, f"--pid-file={folder}/munged.pid"),
                *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"),
            )
            self._wait("munge", f"munge -n --socket {folder}/munge.socket")
            self._start("slurmctld", "-D")
            self._wait("slurmctld", "scontrol ping | grep -q UP")
            for node in nodes:
                self._start("slurmd", "-D", "-N", node)
            self._wait("all nodes", f"[ $(sinfo -h -N -t idle -o %N | wc -l) = {NODES} ]")
        except BaseException:
            self.stop()
            raise

    def _configure(self, nodes: list[str]) -> None:
        folder = self._folder
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        # slurmd wants character devices, and reads a GPU's number from the end of its name
        for number in range(GPUS):
            (folder / f"gpu{number}").symlink_to("/dev/null")
        place = {"host": socket.gethostname().partition(".")[0]}
        place["address"] = socket.gethostbyname(socket.gethostname())
        port, *ports = _free_ports(place["address"], 1 + len(nodes))
        lines = [
            _NODE.format(node=node, port=port, gpus=GPUS, **place)
            for node, port in zip(nodes, ports, strict=True)
        ]
        conf = _SLURM_CONF.format(
            folder=folder, user=_user(), port=port, nodes="\n".join(lines), **place
        )
        (folder / "slurm.conf").write_text(conf)
        (folder / "gres.conf").write_text(
            f"AutoDetect=off\nName=gpu File={folder}/gpu[0-{GPUS - 1}]\n"
        )
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        # The plugin's job step removes every SLURM_* variable, SLURM_CONF too, before its srun.
        for name in _CLIENTS:
            program = shutil.which(name, path=_PATH)
            wrapper = folder / "bin" / name
            wrapper.write_text(
                f'#!/bin/sh\nSLURM_CONF={shlex.quote(f"{folder}/slurm.conf")} exec {program} "$@"\n'
            )
            wrapper.chmod(0o755)

    def _start(self, *command: str) -> None:
        with open(self._folder / "daemons.log", "ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *command],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _wait(self, what: str, command: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while subprocess.run(
            ["sh", "-c", command], env=self.environment, capture_output=True
        ).returncode:
            if time.monotonic() > deadline or any(d.poll() is not None for d in self._daemons):
                log = (self._folder / "daemons.log").read_text(errors="replace")
                raise RuntimeError(f"{what} did not come up:\n{log[-4000:]}")
            time.sleep(0.1)

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands; returns what it printed."""
        return subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True, timeout=60
        ).stdout

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        with suppress(subprocess.SubprocessError, RuntimeError):  # it may be down already
            self.run("scancel", f"--user={_user()}")
            self._wait("the end of all jobs", '[ -z "$(squeue -h)" ]')
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait()


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(address: str, count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    cluster = Cluster(Path(sys.argv[1]))
    print(
        f"export PATH={cluster.environment['PATH']} SLURM_CONF={cluster.environment['SLURM_CONF']}"
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        cluster.stop()
