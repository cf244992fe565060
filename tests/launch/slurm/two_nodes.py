"""A real Slurm of two nodes on this machine, in a folder of its own: munge, a controller and two slurmd."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

CONF = """
ClusterName=cispo
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that was requeued may begin again when its old credentials have expired, by default after two minutes.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
InactiveLimit=0
KillWait=5
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=30
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000 Feature=small State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=debug Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
PartitionName=brief Nodes=node1 MaxTime=0:10:00 State=UP AllowAccounts=physics
"""


def reason_against():
    """Why no Slurm can be started here; "" if one can."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "slurmd must be started by root"


class TwoNodes:
    """Up from the constructor to `close`; `SLURM_CONF` of the environment must be `conf` for whoever asks it."""

    def __init__(self, folder: Path):
        self.folder, self.conf = folder, folder / "slurm.conf"
        self.processes: dict[str, subprocess.Popen] = {}
        for name in ("state", "spool.node1", "spool.node2"):
            (folder / name).mkdir(parents=True)
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in sockets]
        host = socket.gethostname().partition(".")[0]
        self.conf.write_text(CONF.format(host=host, folder=folder, ports=ports))
        try:
            self._start(folder)
        except BaseException:
            self.close()
            raise

    def _start(self, folder):
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        own = [f"--{what}={folder}/munge.{end}" for what, end in (("socket", "sock"), ("pid-file", "pid"))]
        own += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed", f"--key-file={key}"]
        self._spawn("munged", "--foreground", "--force", "--num-threads=2", *own)
        self._wait(lambda: (folder / "munge.sock").exists(), "munged", 20)
        self._spawn("slurmctld", "-D", "-f", str(self.conf))
        self.up("node1")
        self.up("node2")
        self._wait(lambda: self.ask("sinfo", "-h", "-p", "debug", "-t", "idle", "-o", "%D") == "2", "both nodes", 60)

    def _spawn(self, program, *words, name=""):
        with (self.folder / f"{name or program}.out").open("ab") as out:
            environment = os.environ | {"SLURM_CONF": str(self.conf)}
            self.processes[name or program] = subprocess.Popen(
                [shutil.which(program), *words], stdout=out, stderr=out, env=environment, start_new_session=True
            )

    def up(self, node):
        self._spawn("slurmd", "-D", "-f", str(self.conf), "-N", node, name=node)

    def down(self, node):
        """As if its power had failed: its slurmd is gone, with every process of every job on it."""
        self.processes[node].kill()
        self.processes[node].wait()
        for pid in self.processes_of(node):
            os.kill(pid, signal.SIGKILL)

    def processes_of(self, node):
        """Ids of the processes that Slurm started on a node, by the variables that it gave them."""
        mark, ours = f"SLURMD_NODENAME={node}\0".encode(), f"SLURM_CONF={self.conf}\0".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue  # it ended as we looked
            if mark in environment and ours in environment:
                found.append(int(folder.name))
        return found

    def works_on(self, node, actor):
        """A process of Ray's actors of this name is on the node."""
        for pid in self.processes_of(node):
            try:
                if f"ray::{actor}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
            except OSError:
                continue
        return False

    def ask(self, *command, seconds=30):
        """What a command of Slurm prints, without its last newline."""
        environment = os.environ | {"SLURM_CONF": str(self.conf)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
        return done.stdout.strip()

    def state(self, job):
        """RUNNING, PENDING, COMPLETED, ... and how often it was put back."""
        told = dict(word.split("=", 1) for word in self.ask("scontrol", "show", "job", job).split() if "=" in word)
        return told.get("JobState", ""), int(told.get("Restarts", 0))

    def wait_for(self, job, condition, seconds, log=None):
        """Until condition(state, restarts); fails with the log's end when that takes too long."""

        def show():
            return f"{self.state(job)}\n" + (log.read_text()[-3000:] if log and log.exists() else "no log")

        self._wait(lambda: condition(*self.state(job)), f"job {job}", seconds, show)

    def _wait(self, condition, what, seconds, show=lambda: ""):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} kept us waiting for {seconds} s (logs in {self.folder}): {show()}")
            time.sleep(0.2)

    def close(self):
        if "slurmctld" in self.processes:
            self.ask("scancel", "--user=root")
            end = time.monotonic() + 20
            while self.ask("squeue", "-h") and time.monotonic() < end:
                time.sleep(0.2)
        for node in ("node1", "node2"):
            for pid in self.processes_of(node):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
