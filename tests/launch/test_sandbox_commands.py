"""`cispo sandbox serve` as a user starts it: a light process, one sentence when it cannot be, a clean end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*overrides):
    return [sys.executable, "-m", "launch.cli", "sandbox", "serve", *overrides]


@pytest.fixture
def served(tmp_path):
    """A service started from the command line in a folder of its own: its process, URL and token file."""
    token_file, log = tmp_path / "new" / "token", tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command("sandbox.size=1", "sandbox.service.port=0", f"sandbox.service.token_file={token_file}"),
            env=ENVIRONMENT, cwd=tmp_path, stderr=errors,
        )  # fmt: skip
    end = time.monotonic() + 100
    while not (
        match := re.search(r"sandbox service on (http://\S+): 1 cells \(bubblewrap\), token in (\S+)", log.read_text())
    ):
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    assert match[2] == str(token_file)
    yield process, match[1], token_file
    process.kill()
    process.wait()


def failing(*overrides, **environment):
    """What the user reads of a service that does not start."""
    done = subprocess.run(
        command(*overrides), env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("cispo: ")
    return done.stderr


def test_a_service_from_the_command_line(served):
    process, url, token_file = served
    request = urllib.request.Request(
        f"{url}/run",
        json.dumps({"program": {"source": "print(6 * 7)"}}).encode(),
        {"Authorization": f"Bearer {token_file.read_text().strip()}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["stdout"] == "42\n"
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "torch" not in maps, "a service needs the standard library only"
    told = failing(f"sandbox.service.port={url.rpartition(':')[2]}", f"sandbox.service.token_file={token_file}")
    assert re.fullmatch(
        r"cispo: SandboxError: the sandbox service cannot listen on 127.0.0.1:\d+ \(another process listens there\): "
        r"choose another sandbox.service.port\n",
        told,
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_service_that_cannot_isolate_or_must_not_start_says_so(tmp_path):
    token = {"CISPO_SANDBOX_TOKEN": "a-token-of-more-than-sixteen-characters"}
    assert "refuses sandbox.isolation=unsafe" in failing("sandbox=unsafe", **token)
    assert "apt-get install bubblewrap" in failing("sandbox.bwrap=/nonexistent/bwrap", **token)
    assert "has mode 644: chmod 600" in failing(f"sandbox.service.token_file={readable(tmp_path)}")
    assert "unknown key 'sandbox.service.prot': did you mean 'sandbox.service.port'?" in failing(
        "sandbox.service.prot=1"
    )


def readable(folder):
    path = folder / "token"
    path.write_text("x" * 40)
    path.chmod(0o644)
    return path
