"""`cispo serve` as a process of its own, as a user starts it, and a plain HTTP client of it."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from rollout.engine_config import EngineConfig, ServerConfig

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0


class Serving:
    """A server process: where it is, what it wrote, and how it is ended."""

    def __init__(self, folder, *words):
        folder.mkdir(parents=True, exist_ok=True)
        self.token_file, self.log = folder / "token", folder / "log"
        command = [sys.executable, "-m", "launch.cli", "serve", *words[:1], "serve.port=0", *words[1:]]
        command.append(f"serve.token_file={self.token_file}")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=folder, stderr=log)

    @property
    def url(self):
        """Where it listens, as it said itself."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if match := re.search(r"serving .* on (http://\S+), ", self.log.read_text()):
                return match[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no server after {PATIENCE} s: {self.log.read_text()}")

    def terminate(self):
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        """The exit status; kills what does not end by itself."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def connect(self):
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of an answer; the token is shown unless headers say otherwise."""
        connection = self.connect()
        shown = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        shown |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), shown)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    def json(self, method, path, body=None, **headers):
        """Status and JSON of an answer."""
        status, _, content = self.ask(method, path, body, **headers)
        return status, json.loads(content)

    def events(self, path, body):
        """The events of a stream."""
        _, headers, content = self.ask("POST", path, body | {"stream": True})
        assert headers["Content-Type"] == "text/event-stream"
        lines = [line for line in content.decode().splitlines() if line.startswith("data: ")]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def engine_config(self, **settings):
        """The configuration of a client."""
        server = {"urls": (self.url,), "token_file": str(self.token_file)} | settings
        return EngineConfig(max_length=128, kind="openai", server=ServerConfig(**server))
