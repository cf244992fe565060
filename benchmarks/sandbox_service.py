"""What the way over HTTP costs: the remote pool against the local one, with equally many cells, in one run.

    python benchmarks/sandbox_service.py                        about two minutes
    python benchmarks/sandbox_service.py --jobs 40 --rounds 1   a look

The service runs beside this process on 127.0.0.1, as `cispo sandbox serve` starts it. Programs print one number, so
that what is measured is everything but their work. Rounds alternate between the sides and medians are compared:

    jobs/s       128 programs submitted at once to `--cells` cells
    one by one   milliseconds from run() to its return, one program at a time
    CPU          milliseconds per program of this process and, for the remote side, of the service; children not counted
    requests/s   GET /health over 8 kept connections: HTTP without any program

Results go to benchmarks/results/sandbox_service.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import machine

from sandbox import Program, ProgramPool, RemotePool, SandboxPool, Verdict
from sandbox.remote import HttpSite
from sandbox.service_config import RemoteConfig

RESULTS = Path(__file__).parent / "results" / "sandbox_service.json"
ROOT = Path(__file__).resolve().parents[1]
CONNECTIONS = 8
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def service(cells: int) -> Iterator[tuple[RemoteConfig, int]]:
    """A service in a process of its own: how to reach it, and its process id."""
    with tempfile.TemporaryDirectory() as folder:
        token_file, log = Path(folder) / "token", Path(folder) / "log"
        settings = json.dumps({"size": cells, "service": {"port": 0, "token_file": str(token_file)}})
        command = [sys.executable, "-P", "-m", "sandbox.serve", settings]
        with log.open("w") as errors:
            process = subprocess.Popen(command, stderr=errors, env=os.environ | {"PYTHONPATH": str(ROOT)})
        try:
            while not (match := re.search(r"service on (http://\S+): ", log.read_text())):
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.05)
            yield RemoteConfig(urls=(match[1],), token_file=str(token_file)), process.pid
        finally:
            process.terminate()
            process.wait()


def cpu_of(pid: int) -> float:
    """CPU seconds of a process without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def crowd(pool: ProgramPool, num_jobs: int, pids: list[int]) -> dict[str, float]:
    """Programs submitted at once: per second, and CPU milliseconds for each by process."""
    before, begin = [cpu_of(pid) for pid in pids], time.perf_counter()
    futures = [pool.submit(Program(f"print({n})")) for n in range(num_jobs)]
    executions = [future.result() for future in futures]
    seconds = time.perf_counter() - begin
    wrong = sum(done.verdict is not Verdict.OK or done.stdout != b"%d\n" % n for n, done in enumerate(executions))
    cpu = sum(cpu_of(pid) - at for pid, at in zip(pids, before, strict=True))
    return {"jobs_per_second": num_jobs / seconds, "cpu_ms": 1e3 * cpu / num_jobs, "wrong": wrong}


def one_by_one(pool: ProgramPool, num_jobs: int) -> list[float]:
    """Milliseconds of each of `num_jobs` calls of run."""
    times = []
    for n in range(num_jobs):
        begin = time.perf_counter()
        pool.run(Program(f"print({n})"))
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def requests_per_second(config: RemoteConfig, num_requests: int) -> float:
    """GET /health as fast as CONNECTIONS clients of one process can."""

    async def all_clients() -> float:
        site = HttpSite(config.urls[0], Path(config.token_file).read_text().strip(), config)

        async def client() -> None:
            for _ in range(num_requests // CONNECTIONS):
                await site._ask("GET", "/health", b"", 1 << 20)

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
        await site.close()
        return time.perf_counter() - begin

    return num_requests / asyncio.run(all_clients())


def measure(cells: int, num_jobs: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn; the medians of the rounds."""
    crowds: dict[str, list[dict[str, float]]] = {"local": [], "remote": []}
    times: dict[str, list[float]] = {"local": [], "remote": []}
    with (
        service(cells) as (config, pid),
        SandboxPool(cells) as local,
        RemotePool(config, size=128) as remote,
    ):
        pools: dict[str, tuple[ProgramPool, list[int]]] = {
            "local": (local, [os.getpid()]),
            "remote": (remote, [os.getpid(), pid]),
        }
        for pool, _ in pools.values():
            crowd(pool, 8, [])
        for _ in range(rounds):
            for side, (pool, pids) in pools.items():
                crowds[side].append(crowd(pool, num_jobs, pids))
                times[side] += one_by_one(pool, num_jobs // 4)
        rate = requests_per_second(config, 4000)
    return {
        "requests_per_second": round(rate),
        **{side: summary(crowds[side], times[side]) for side in pools},
    }


def summary(crowds: list[dict[str, float]], times: list[float]) -> dict[str, float]:
    """Medians of the rounds, and percentiles of the single calls."""
    ordered = sorted(times)
    return {
        "jobs_per_second": round(statistics.median(each["jobs_per_second"] for each in crowds), 1),
        "cpu_ms": round(statistics.median(each["cpu_ms"] for each in crowds), 2),
        "wrong": sum(each["wrong"] for each in crowds),
        "one_by_one_p50_ms": round(ordered[len(ordered) // 2], 2),
        "one_by_one_p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
    }


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = measure(options.cells, options.jobs, options.rounds)
    for side in ("local", "remote"):
        print(f"{side:<8}", "  ".join(f"{name} {value:g}" for name, value in result[side].items()))
    local, remote = result["local"], result["remote"]
    print(f"HTTP alone: {result['requests_per_second']} requests/s over {CONNECTIONS} connections")
    print(
        f"remote / local: {remote['jobs_per_second'] / local['jobs_per_second']:.2f} x the jobs per second; "
        f"per program {remote['one_by_one_p50_ms'] - local['one_by_one_p50_ms']:.1f} ms more at the median and "
        f"{remote['cpu_ms'] - local['cpu_ms']:.2f} ms more CPU"
    )
    settings = {"cells": options.cells, "jobs": options.jobs, "rounds": options.rounds}
    RESULTS.write_text(json.dumps({"machine": machine(), "settings": settings, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
