"""Jobs per second, CPU per job and delays of the sandbox, against cold processes, in one run.

    python benchmarks/sandbox_cells.py                     about two minutes
    python benchmarks/sandbox_cells.py --soak 100000       instead: that many jobs, and what they leave behind

Sides, which take turns so that a busy machine is busy for all of them: `cell` is sandbox.Sandbox; `bwrap` starts
bubblewrap with as many namespaces and an interpreter in it for each job; `plain` starts the interpreter (or the
compiled program) alone, with no wall; `nsjail` and `isolate` take part where they are installed. Each job reads a
number and prints it plus one: a Python program without imports, one with numpy, a C++ program (compiled before, once).

CPU is that of everything: our own process and all that it started, living cells included, in user and system mode.
Delays are of one job at a time, from the call to the result. `kill` is how long after its limit a program is reported.
Results go to benchmarks/results/sandbox_cells.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from machine import machine

from sandbox import Limits, Program, Sandbox, SandboxPool, Verdict

RESULTS = Path(__file__).parent / "results" / "sandbox_cells.json"
LIMITS = Limits(cpu_seconds=5, wall_seconds=30)
PLAIN_PYTHON = "/usr/bin/python3"
SOURCES = {
    "trivial": "print(int(input()) + 1)",
    "numpy": "import numpy as np\nprint(int(np.asarray([int(input()), 1]).sum()))",
    "cpp": "#include <bits/stdc++.h>\nint main() { int x; std::cin >> x; std::cout << x + 1 << std::endl; }",
}
LANGUAGES = {"trivial": "python", "numpy": "numpy", "cpp": "cpp"}
BWRAP = [
    "bwrap",
    "--unshare-all",
    "--die-with-parent",
    "--as-pid-1",
    "--cap-drop",
    "ALL",
    "--uid",
    "1000",
    "--gid",
    "1000",
]
BWRAP += ["--clearenv", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"]
NSJAIL = ["nsjail", "-Mo", "-Q", "--chroot", "/", "--disable_rlimits", "--"]

Side = Callable[[], bytes]


def cold(command: list[str]) -> Side:
    def run() -> bytes:
        return subprocess.run(command, input=b"41", stdout=subprocess.PIPE, check=True).stdout

    return run


def plain_command(case: str, folder: Path) -> list[str]:
    """The job without a wall, as a cold process."""
    if case == "cpp":
        program = folder / "program"
        (folder / "main.cpp").write_text(SOURCES["cpp"])
        subprocess.run(["g++", "-O2", str(folder / "main.cpp"), "-o", str(program)], check=True)
        return [str(program)]
    if case == "numpy":
        return [sys.executable, "-c", SOURCES["numpy"]]
    return [PLAIN_PYTHON, "-I", "-S", "-c", SOURCES["trivial"]]


def sides(case: str, sandbox: Sandbox, folder: Path) -> dict[str, Side]:
    program = Program(SOURCES[case], LANGUAGES[case], stdin="41")
    plain = plain_command(case, folder)
    found: dict[str, Side] = {"cell": lambda: sandbox.run(program).stdout, "plain": cold(plain)}
    found["bwrap"] = cold([*BWRAP, "--bind", str(folder), str(folder), *plain])
    if shutil.which("nsjail"):
        found["nsjail"] = cold([*NSJAIL, *plain])
    if shutil.which("isolate"):
        subprocess.run(["isolate", "--init"], check=True, stdout=subprocess.DEVNULL)
        found["isolate"] = cold(["isolate", "--run", "-s", "--", *plain])
    return found


def cpu_of_all() -> float:
    """Processor seconds of this process and of everything below it, ended or living."""
    own = os.times()
    ticks = sum(_ticks(pid) for pid in below(os.getpid()))
    return own.user + own.system + own.children_user + own.children_system + ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


def below(root: int) -> list[int]:
    """All living processes below `root`."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:
            continue
        found += children
        waiting += children
    return found


def measure(case: str, sandbox: Sandbox, rounds: int, jobs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Path(name).chmod(0o755)
        runs = sides(case, sandbox, Path(name))
        for side, run in runs.items():
            for _ in range(3):
                assert run().strip() == b"42", (case, side)
        cpu_ms: dict[str, list[float]] = {side: [] for side in runs}
        wall_ms: dict[str, list[float]] = {side: [] for side in runs}
        for _ in range(rounds):
            for side, run in runs.items():
                before = cpu_of_all()
                for _ in range(jobs):
                    began = time.perf_counter()
                    run()
                    wall_ms[side].append((time.perf_counter() - began) * 1e3)
                cpu_ms[side].append((cpu_of_all() - before) / jobs * 1e3)
    results = {side: summary(cpu_ms[side], wall_ms[side]) for side in runs}
    for side in runs:
        results[side]["cpu_of_cell"] = round(results[side]["cpu_ms"] / results["cell"]["cpu_ms"], 2)
    return results


def summary(cpu_ms: list[float], wall_ms: list[float]) -> dict[str, float]:
    ordered = sorted(wall_ms)
    return {
        "cpu_ms": round(statistics.median(cpu_ms), 2),
        "jobs_per_cpu_second": round(1e3 / statistics.median(cpu_ms), 1),
        "wall_p50_ms": round(statistics.median(ordered), 2),
        "wall_p99_ms": round(ordered[int(len(ordered) * 0.99)], 2),
    }


def throughput(size: int, jobs: int) -> float:
    """Trivial jobs per wall second, `size` at a time."""
    with SandboxPool(size, LIMITS) as pool:
        program = Program(SOURCES["trivial"], stdin="41")
        for future in [pool.submit(program) for _ in range(4 * size)]:
            future.result()
        began = time.perf_counter()
        pending: list[Future[Any]] = [pool.submit(program) for _ in range(jobs)]
        assert all(future.result().stdout == b"42\n" for future in pending)
        return jobs / (time.perf_counter() - began)


KILLS = {
    "wall": ("import time; time.sleep(60)", Limits(cpu_seconds=5, wall_seconds=0.5), Verdict.TLE, 0.5),
    "cpu": ("while True: pass", Limits(cpu_seconds=0.5, wall_seconds=30), Verdict.TLE, 0.5),
    "cpu of a tree": (
        "import os\nfor _ in range(3): os.fork()\nwhile True: pass",
        Limits(cpu_seconds=0.5, wall_seconds=30),
        Verdict.TLE,
        None,
    ),
}


def kill_delays(sandbox: Sandbox, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds by which a program outlived its limit, by the wall clock or by its own processor time."""
    results = {}
    for name, (source, limits, verdict, limit_seconds) in KILLS.items():
        delays = []
        for _ in range(rounds):
            execution = sandbox.run(Program(source), limits)
            assert execution.verdict is verdict, (name, execution)
            used = execution.wall_s if name == "wall" else execution.cpu_s
            delays.append((used - (limit_seconds or limits.cpu_seconds)) * 1e3)
        results[name] = {"p50_ms": round(statistics.median(delays), 1), "max_ms": round(max(delays), 1)}
    return results


def soak(jobs: int, size: int) -> dict[str, Any]:
    """Very many jobs, some of which misbehave; what they leave in this process and on the machine."""
    mix = [Program(SOURCES["trivial"], stdin="41")] * 17
    mix += [Program("import os\nif os.fork() == 0:\n    while True: pass"), Program("1 / 0"), Program("x = (")]
    expected = [Verdict.OK] * 18 + [Verdict.RE, Verdict.CE]
    with SandboxPool(size, LIMITS) as pool:

        def run_some(number: int) -> int:
            pending = [pool.submit(mix[at % 20]) for at in range(number)]
            return sum(future.result().verdict is not expected[at % 20] for at, future in enumerate(pending))

        run_some(2000)
        before, began, cpu = standing(), time.perf_counter(), cpu_of_all()
        wrong = 0
        for done in range(0, jobs, 5000):
            wrong += run_some(min(5000, jobs - done))
            print(f"{done + 5000:7} jobs, {wrong} wrong, {standing()}", flush=True)
        seconds, cpu = time.perf_counter() - began, cpu_of_all() - cpu
        after = standing()
    return {
        "jobs": jobs,
        "wrong_verdicts": wrong,
        "jobs_per_second": round(jobs / seconds, 1),
        "cpu_ms": round(cpu / jobs * 1e3, 2),
        "before": before,
        "after": after,
        "after_close": standing(),
    }


def standing() -> dict[str, float]:
    return {
        "resident_mb": round(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6, 1),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "processes": len(below(os.getpid())),
        "mounts": Path("/proc/self/mounts").read_text().count("\n"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=60, help="of each side in each round")
    parser.add_argument("--soak", type=int, default=0, metavar="JOBS", help="run only the soak, with this many jobs")
    args = parser.parse_args()
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report["machine"] = machine()
    if args.soak:
        report["soak"] = soak(args.soak, size=2)
        print(json.dumps(report["soak"], indent=2))
    else:
        sandbox = Sandbox(LIMITS)
        for case in SOURCES:
            report[case] = measure(case, sandbox, args.rounds, args.jobs)
            for side, figures in report[case].items():
                print(f"{case:8} {side:8}", *(f"{name} {value:<8}" for name, value in figures.items()))
        report["kill"] = kill_delays(sandbox, args.rounds)
        print("kill    ", report["kill"])
        sandbox.close()
        report["trivial_jobs_per_second"] = {str(size): round(throughput(size, 1000), 1) for size in (1, 2)}
        print("trivial jobs per second by size of the pool", report["trivial_jobs_per_second"])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
