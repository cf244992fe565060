"""benchmarks/kernels.py where there is no CUDA device: it checks, and says why it does not time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_without_a_device_it_says_so_in_one_sentence():
    done = run()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs a CUDA device" in done.stderr


def test_the_check_runs_in_the_interpreter():
    pytest.importorskip("triton")
    done = run("--check")
    assert done.returncode == 0, done.stderr
    assert "triton  T130-N3-H2-d64-float32" in done.stdout
