"""Sandbox services as processes of their own, on 127.0.0.1, as `cispo sandbox serve` runs them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sandbox import Limits, RemotePool
from sandbox.service_config import RemoteConfig
from sandbox.wire import to_json

ROOT = Path(__file__).parents[3]
TIGHT = Limits(cpu_seconds=1.0, wall_seconds=5.0, memory_bytes=96 << 20, output_bytes=1 << 20, num_processes=24)
PATIENCE = 60.0


class RunningService:
    """A service process: where it is, what it wrote, and how it is ended."""

    def __init__(self, folder, token_file, settings, size):
        self.token_file, self.log = token_file, folder / "log"
        config = {
            "size": size,
            "limits": to_json(TIGHT),
            "service": {"token_file": str(token_file), "port": 0} | settings,
        }
        command = [sys.executable, "-P", "-m", "sandbox.serve", json.dumps(config)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}, stderr=log
            )

    @property
    def url(self):
        """Where it listens, as it said itself."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if match := re.search(r"sandbox service on (http://\S+): ", self.log.read_text()):
                return match[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        raise AssertionError(f"no service after {PATIENCE} s: {self.log.read_text()}")

    @property
    def address(self):
        return urlsplit(self.url).hostname, urlsplit(self.url).port

    @property
    def token(self):
        return self.token_file.read_text().strip()

    def send(self, signal_number):
        self.process.send_signal(signal_number)

    def end(self):
        """The exit status; kills what does not end by itself."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def pool(self, *others, size=64, limits=TIGHT, **settings):
        """A client of this service and of others that share its token."""
        urls = tuple(service.url for service in (self, *others))
        return RemotePool(RemoteConfig(urls=urls, token_file=str(self.token_file), **settings), limits, size=size)


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """serve(size=2, **settings of sandbox.service): a service that the session ends at the latest."""
    token_file = tmp_path_factory.mktemp("token") / "token"
    services = []

    def start(size=2, **settings):
        services.append(RunningService(tmp_path_factory.mktemp("service"), token_file, settings, size))
        return services[-1]

    yield start
    for service in services:
        if service.process.poll() is None:
            service.send(signal.SIGKILL)
            service.end()


@pytest.fixture(scope="session")
def service(serve):
    """One service for all tests that leave it as it is."""
    started = serve()
    assert started.url
    return started


@pytest.fixture(scope="session")
def tight():
    """The limits of the services here."""
    return TIGHT


@pytest.fixture
def dead_url():
    """An address at which nobody listens, for as long as the test lasts."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def eventually():
    """eventually(condition): waits until it holds."""

    def wait(condition, seconds=PATIENCE):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come true"
            time.sleep(0.02)

    return wait
