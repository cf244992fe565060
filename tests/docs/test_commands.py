"""Every command and every program of the pages is run, in page order; what cannot run here is parsed and checked."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from configs.schema import RunConfig
from launch.cli import main, make_parser, parse
from launch.compose import compose
from launch.sweep import expand
from tests.docs.pages import COMMANDS, PAGES, ROOT, SHORT, blocks_of, command_blocks, shortened

PATIENCE = 600.0
BY_KIND = {kind: [b for b in command_blocks() if b.mark and b.kind == kind] for kind in ("run", "slow", "parse")}


def place(item):
    return str(item.relative_to(ROOT)) if hasattr(item, "relative_to") else item.place


class Session:
    """A shell in a page's folder, with `cispo` and `python` in it, that ends the servers which the page starts."""

    def __init__(self, folder):
        self.folder, self.servers, self.ports = folder, [], {}
        (folder / "bin").mkdir()
        for name, words in {"cispo": "-m launch.cli ", "python": "", "python3": ""}.items():
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {sys.executable} {words}"$@"\n')
            script.chmod(0o755)
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("prompts.jsonl"))
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder),
        }

    def run(self, block):
        for command in block.commands if block.language == "console" else [block.text]:
            command = command.replace(".venv/bin/", "")
            for port, free in self.ports.items():
                command = command.replace(f":{port}", f":{free}")
            if "serve" in block.flags:
                self.serve(command)
                continue
            if "short" in block.flags and shlex.split(command)[:2] in (["cispo", "train"], ["cispo", "sft"]):
                command = shlex.join(shortened(shlex.split(command, comments=True)))
            self.finish(block, command)

    def finish(self, block, command):
        status = next((int(flag.split()[1]) for flag in block.flags if flag.startswith("status")), 0)
        if block.language == "console":  # in this process, which has imported everything
            assert main(shlex.split(command, comments=True)[1:]) == status, f"{block.place}: {command}"
            return
        done = self.bash(command)
        told = f"{block.place}: {command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == status, told
        assert "Traceback" not in done.stderr, told

    def bash(self, command):
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def serve(self, command):
        """Start a server as the page says, but on a free port; wait until it says where it listens."""
        words = shlex.split(command, comments=True)
        port = next((word.split("=")[1] for word in words if re.match(r".*\bport=\d+$", word)), "8800")
        key = "sandbox.service.port" if words[1] == "sandbox" else "serve.port"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.ports[port] = probe.getsockname()[1]
        words = [word for word in words if not word.startswith(f"{key}=")] + [f"{key}={self.ports[port]}"]
        log = self.folder / f"server-{len(self.servers)}.log"
        with log.open("w") as file:
            self.servers.append(
                subprocess.Popen(words, cwd=self.folder, env=self.environment, stderr=file, stdout=file)
            )
        end = time.monotonic() + PATIENCE
        while f":{self.ports[port]}" not in log.read_text():
            assert self.servers[-1].poll() is None and time.monotonic() < end, f"{command}: {log.read_text()}"
            time.sleep(0.05)

    def close(self):
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
        for server in self.servers:
            server.wait(PATIENCE)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """A short run named embedded, as other pages take it for granted."""
    session = Session(tmp_path_factory.mktemp("short"))
    done = session.bash(shlex.join(shortened(["cispo", "train", "name=embedded"])))
    assert done.returncode == 0, done.stderr
    return session.folder / "runs" / "embedded"


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    session = Session(tmp_path)
    yield session
    session.close()


def write_files(page, folder):
    """The files that a page shows, and those that it names and another page shows."""
    shown = {b.file_name: b.text for other in PAGES for b in blocks_of(other) if b.file_name in page.read_text()}
    for name, text in (shown | {b.file_name: b.text for b in blocks_of(page)}).items():
        if name:
            (folder / name).write_text(text)


def pages_with(kind):
    return [page for page in PAGES if any(block.page == page for block in BY_KIND[kind])]


def follow(page, kinds, session):
    """The page's files and its commands of these kinds, from top to bottom."""
    write_files(page, session.folder)
    names = {}
    for block in blocks_of(page):
        if block.language == "python" and "slow" in kinds:
            exec(compile(block.text, block.place, "exec"), names)
        if block.language in COMMANDS and block.kind in kinds:
            session.run(block)


@pytest.mark.parametrize("page", pages_with("run"), ids=place)
def test_the_commands_of_a_page_run(page, session):
    follow(page, ("run",), session)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks_of(page))], ids=place
)
def test_the_programs_of_a_page_run_from_top_to_bottom(page, session):
    write_files(page, session.folder)
    names = {}
    for block in blocks_of(page):
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", pages_with("slow"), ids=place)
def test_the_longer_commands_of_a_page_run_in_page_order(page, session, request):
    text = page.read_text()
    if "runs/embedded" in text:
        shutil.copytree(request.getfixturevalue("short_run"), session.folder / "runs" / "embedded")
    follow(page, ("run", "slow"), session)


@pytest.mark.parametrize("block", command_blocks(), ids=place)
def test_every_command_says_how_it_is_tested_and_is_understood(block):
    assert block.mark, f"{block.place}: say how it is tested, e.g. <!-- test: slow, short -->, right above the commands"
    assert (block.kind == "parse") == bool(block.mark["reason"]), f"{block.place}: 'parse: <reason>', and no other"
    subprocess.run(["bash", "-n", "-c", block.text], check=True)
    is_refused = any(flag.startswith("status") for flag in block.flags)  # which the run of the page looks at
    for command in block.commands:
        if not is_refused:
            understand(shlex.split(command.replace(".venv/bin/", ""), comments=True))


def understand(words):
    """A command of ours by its real parser, its settings composed and checked; make by a dry run."""
    program, *arguments = words
    if program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif program == "cispo" and not {"-h", "--help"} & set(arguments):
        options = parse(make_parser(), arguments)
        if hasattr(options, "overrides") and not getattr(options, "resume", None):
            for overrides in expand(options.overrides) if getattr(options, "multirun", False) else [options.overrides]:
                assert isinstance(compose(overrides), RunConfig)


def test_the_commands_that_cannot_run_here_are_these():
    """A new one must be added by hand, so that nobody says `parse` for a command that could run."""
    reasons = {block.mark["reason"] for block in BY_KIND["parse"]}
    known = (
        "GPU",
        "several machines",
        "Slurm",
        "W&B",
        "vLLM",
        "a whole run",
        "stays in the foreground",
    )
    strange = sorted(reason for reason in reasons if not any(word in reason for word in known))
    assert not strange, f"these reasons are none of {', '.join(known)}: {strange}"


def test_a_command_without_a_class_or_with_a_wrong_setting_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```console\ncispo train stepz=3\n```\n\n<!-- test: slow, short -->\n\n```console\ncispo train\n```\n"
    )
    first, second = blocks_of(page)
    assert first.mark is None and second.kind == "slow" and second.flags == ["short"]
    with pytest.raises(Exception, match="did you mean 'steps'"):
        understand(shlex.split(first.commands[0]))


def test_shortened_keeps_every_setting_that_does_not_make_a_run_long():
    words = shortened(["cispo", "train", "steps=90", "learner.lr=1e-4"])
    assert words[:4] == ["cispo", "train", "steps=2", "learner.lr=1e-4"]
    assert {word.split("=")[0] for word in words[4:]} == set(SHORT) - {"steps"}
