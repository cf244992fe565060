"""One node of the Ray cluster of a job, and the wait until all are there.

    python -m launch.ray_node head FOLDER NAME ...      python -m launch.ray_node worker FOLDER NAME ...
    python -m launch.ray_node wait FOLDER NAME NAME ...

The head takes free ports, so that several jobs can share a machine, and writes its address into FOLDER, where the
others look for it. Every node has a resource of its own name, by which `wait` can say who is missing. SIGTERM or
SIGUSR2 ends a node and what belongs to it.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from cispo.errors import CispoError, DeadlineExceeded
from launch.actors import AS_INHERITED
from launch.run_files import write_atomically

ADDRESS = "address"
"""File of the job's folder: host:port of the head."""

END_SECONDS = 10.0
"""How long Ray may take to end its processes."""

NODE = "node-name:"
"""What the resource of a node's name begins with."""

ANYWHERE = "10.255.255.255"
"""Some other machine, to see by which interface one would go there."""

SIOCGIFADDR = 0x8915
"""The ioctl that tells the IPv4 address of an interface (linux/sockios.h)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three; the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        if options.what == "wait":
            wait_for_nodes(options.folder, options.names, options.seconds)
            return 0
        return run_node(options)
    except CispoError as error:
        print(f"cispo: {error}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The options that the sbatch script sets."""
    parser = argparse.ArgumentParser(prog="python -m launch.ray_node")
    parser.add_argument("what", choices=("head", "worker", "wait"))
    parser.add_argument("folder", type=Path, help="of this start of the job, seen by all nodes")
    parser.add_argument("names", nargs="+", help="of this node; of all nodes that are waited for")
    parser.add_argument("--seconds", type=float, default=300.0, help="that is waited for the head, or for all")
    parser.add_argument("--interface", default="", help="of the network")
    parser.add_argument("--host", default="", help="how others call the head, if it is not by its name")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--object-store-mb", type=int, default=256)
    return parser


def run_node(options: argparse.Namespace) -> int:
    """Be a node until SIGTERM, or until one of Ray's processes ends; the exit status of `ray start --block`."""
    name = options.names[0]
    with ExitStack() as stack:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--num-cpus={options.cpus}", f"--num-gpus={options.gpus}", f'--resources={{"{NODE}{name}": 1}}']
        command += [f"--object-store-memory={options.object_store_mb << 20}"]
        if options.what == "head":
            address, reserved = own_address(options.interface, options.host or name), free_ports(2)
            # A short path: those of Ray's sockets are below it, and Linux takes 107 characters.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
            )
            if importlib.util.find_spec("grpc"):  # with which Ray would serve others, at a port that may be taken
                command += [f"--ray-client-server-port={reserved[1]}"]
            command += ["--head", f"--port={reserved[0]}"]
            command += ["--include-dashboard=false", f"--temp-dir={folder}"]
        else:
            head = read_address(options.folder, options.seconds)
            address = own_address(options.interface, "", towards=head)
            command += [f"--address={head}"]
        command += [f"--node-ip-address={address}"]
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | AS_INHERITED
        environment.pop("RAY_ADDRESS", None)  # somebody else's cluster
        process = stack.enter_context(ended(subprocess.Popen(command, env=environment, start_new_session=True)))
        if options.what == "head":
            wait_for_port(process, address, reserved[0], options.seconds)
            write_atomically(options.folder / ADDRESS, f"{address}:{reserved[0]}\n")
        return process.wait()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """SIGTERM or SIGUSR2 to this process ends `process` and all that it started, however long Ray would like to take.

    SIGUSR2 is what srun passes on; of SIGTERM it makes a SIGKILL.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, leave)
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def own_address(interface: str, host: str, *, towards: str = "") -> str:
    """This node's IPv4 address: of `interface`, as `host` resolves, or from which `towards` (host:port) is reached."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            if interface:
                request = struct.pack("256s", interface.encode()[:15])
                return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
            if not towards:
                address = socket.gethostbyname(host)
                if not address.startswith("127.") or address == host:
                    return address
                towards = f"{ANYWHERE}:1"  # many systems give their own name the loopback's address
            peer, _, port = towards.rpartition(":")
            probe.connect((peer, int(port)))  # sends nothing: it only picks the interface
            return str(probe.getsockname()[0])
    except OSError as error:
        what = f"slurm.interface={interface}" if interface else f"the name {host}" if host else towards
        raise CispoError(
            f"Node {socket.gethostname()} finds no IPv4 address by {what} ({error.strerror or error}); set "
            f"slurm.interface to the network that all nodes share (`ip -4 address` lists them)."
        ) from error


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for_port(process: subprocess.Popen[bytes], host: str, port: int, seconds: float) -> None:
    """Until the head listens. Raises CispoError if it ends before, DeadlineExceeded."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise CispoError(f"Ray's head on {socket.gethostname()} ended as it started (status {process.returncode}).")
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return
        except OSError:
            time.sleep(0.1)
    raise DeadlineExceeded(
        f"Node {socket.gethostname()} waited {seconds:g} s for Ray's head at {host}:{port}; a firewall between the "
        f"nodes, or raise slurm.start_seconds."
    )


def read_address(folder: Path, seconds: float) -> str:
    """The head's, once it has written it. Raises DeadlineExceeded."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        list(folder.iterdir())  # a network file system then looks anew
        if (folder / ADDRESS).is_file():
            return (folder / ADDRESS).read_text(encoding="utf-8").strip()
        time.sleep(0.2)
    raise DeadlineExceeded(
        f"Node {socket.gethostname()} waited {seconds:g} s for the first node to write its address into "
        f"{folder / ADDRESS}; look at its log beside that file, or at whether all nodes share that folder."
    )


def wait_for_nodes(folder: Path, names: Sequence[str], seconds: float) -> None:
    """Until the nodes of these names have joined. Raises DeadlineExceeded with those that are missing."""
    import ray

    end = time.monotonic() + seconds
    address = read_address(folder, seconds)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    told: set[str] = set()
    while missing := set(names) - (present := nodes_present()):
        if present - told:
            told |= present
            print(
                f"cispo: {len(present)} of {len(names)} nodes have joined, waiting for {_listed(missing)}", flush=True
            )
        if time.monotonic() > end:
            raise DeadlineExceeded(
                f"The job waited {seconds:g} s for {_listed(missing)} to join Ray's head at {address}, where "
                f"{_listed(present)} {'is' if len(present) == 1 else 'are'}; see the log of each beside this one, "
                f"leave a bad node out by slurm.options=[--exclude=...], or raise slurm.start_seconds."
            )
        time.sleep(0.2)
    print(f"cispo: all {len(names)} nodes have joined Ray at {address}", flush=True)


def nodes_present() -> set[str]:
    """Names of the nodes that the cluster has now."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return {name.removeprefix(NODE) for node in alive for name in node["Resources"] if name.startswith(NODE)}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nobody"


if __name__ == "__main__":
    sys.exit(main())
