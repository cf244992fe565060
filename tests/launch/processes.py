"""The processes that a test started, by title, and how to kill them while it waits."""

import os
import signal
import threading
import time
from pathlib import Path


def below(ancestor):
    """Ids of a process and of all that it started, Ray's and those of Ray's actors included."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it ended as we looked

    def is_below(pid):
        return pid == ancestor or (pid in parents and is_below(parents[pid]))

    return [pid for pid in parents if is_below(pid)]


def command_line(pid):
    """What `ps` shows of it; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def ours(title):
    """Ids of the processes below this one whose title begins so; other runs of this machine are not ours to kill."""
    return [pid for pid in below(os.getpid()) if command_line(pid).startswith(title)]


def killer(title, folder, num_lines):
    """A thread that kills the processes of that title once metrics.jsonl has so many lines."""

    def kill():
        metrics = folder / "metrics.jsonl"
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if metrics.exists() and metrics.read_text().count("\n") >= num_lines:
                for pid in ours(title):
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread
