"""What this machine can do for a sandbox, and whom to ask for what it cannot. Reads and tries; changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import IsolationError
from sandbox.host import become_nobody
from sandbox.landlock import NEEDED_ABI, landlock_abi, why_no_landlock
from sandbox.process_tree import WATCHING_NEEDS, look_at_tree, proportional_memory
from sandbox.seccomp import filter_bytes

_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("user/max_pid_namespaces", "0", "sysctl -w user.max_pid_namespaces=15000"),
    ("user/max_mnt_namespaces", "0", "sysctl -w user.max_mnt_namespaces=15000"),
    ("user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=15000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give bwrap an AppArmor profile",
    ),
)
"""Below /proc/sys: the value that forbids user namespaces, and what an administrator can do."""

_COMPILERS = {"c": "gcc", "cpp": "g++", "javascript": "node", "java": "javac", "rust": "rustc", "go": "go"}
_NEW_USER = "import ctypes, os; os._exit(ctypes.CDLL(None).unshare(0x10000000) != 0)"


@dataclass(frozen=True)
class Fact:
    """One line of the report.

    Attributes:
        name, value: what was looked at and what was found.
        ask: what to ask an administrator for; empty where nothing is missing.
    """

    name: str
    value: str
    ask: str = ""


def facts(bwrap: str = "bwrap") -> list[Fact]:
    """Everything that decides which tiers work here."""
    return [
        Fact("kernel", f"{os.uname().release} {os.uname().machine}"),
        _user_namespaces(),
        _bubblewrap(bwrap),
        _seccomp(),
        _landlock(),
        cgroups(),
        _setpriv(),
        _proc(),
        core_dumps(),
        *(_compiler(language, command) for language, command in _COMPILERS.items()),
    ]


def why_not(isolation: str, bwrap: str = "bwrap") -> str | None:
    """What a tier lacks here, as one sentence with the remedy; None when nothing is known to be missing."""
    if isolation == "landlock":
        return why_no_landlock(landlock_abi())
    if isolation == "bubblewrap" and shutil.which(bwrap) is None:
        return (
            f"programs cannot be isolated because bubblewrap is not installed (looked for {bwrap!r}): "
            "apt-get install bubblewrap; else sandbox.isolation=landlock may hold here (see `cispo sandbox check`), "
            "and sandbox.isolation=unsafe runs trusted programs without a wall"
        )
    for switch, remedy in forbidding_switches() if isolation == "bubblewrap" and not _can_make_namespaces() else ():
        return (
            f"programs cannot be isolated because {switch}, which forbids user namespaces; an administrator can run: "
            f"{remedy}; else sandbox.isolation=landlock may hold here (see `cispo sandbox check`)"
        )
    return None


def forbidding_switches(root: Path = Path("/proc/sys")) -> Iterator[tuple[str, str]]:
    """Switches that forbid user namespaces, as "name is value", each with its remedy."""
    for switch, forbidding, remedy in _SWITCHES:
        file = root / switch
        if file.exists() and file.read_text().strip() == forbidding:
            yield f"{switch.replace('/', '.')} is {forbidding}", remedy


def cgroups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Fact:
    """Whether a part of the cgroup v2 tree is ours. Nice to have: without it the watcher alone keeps the sums."""
    ask = "for sums kept by the kernel: systemd-run --user --scope -p Delegate=yes ..., or Delegate=yes in the unit"
    lines = own.read_text().splitlines() if own.exists() else []
    path = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), None)
    mounted = root if (root / "cgroup.controllers").exists() else root / "unified"
    if path is None or not (mounted / "cgroup.controllers").exists():
        return Fact("cgroup v2", "none; the watcher keeps the limits", ask)
    folder = mounted / path
    controllers = (folder / "cgroup.controllers").read_text().split() if folder.is_dir() else []
    missing = sorted({"memory", "pids"} - set(controllers))
    if missing or not os.access(folder, os.W_OK):
        why = f"{' and '.join(missing)} not delegated" if missing else f"{folder} is not writable"
        return Fact("cgroup v2", f"{why}; the watcher keeps the limits", ask)
    return Fact("cgroup v2", f"delegated at {folder}")


def core_dumps(pattern: Path = Path("/proc/sys/kernel/core_pattern")) -> Fact:
    """A pattern that is a pipe starts a program as root for every crash, whatever the limit on core files is."""
    said = pattern.read_text().strip() if pattern.exists() else ""
    if said.startswith("|"):
        return Fact("core dumps", f"piped to {said[1:].split()[0]}", "sysctl -w kernel.core_pattern=core, so that "
                    "a program's crash starts nothing outside")  # fmt: skip
    return Fact("core dumps", "files, which the limits forbid")


def _can_make_namespaces() -> bool:
    try:
        command = [*become_nobody(), sys.executable, "-I", "-S", "-c", _NEW_USER]
        if os.geteuid() == 0 and Path("/usr/bin/python3").exists():
            command = [*become_nobody(), "/usr/bin/python3", "-I", "-S", "-c", _NEW_USER]
        return subprocess.run(command, cwd="/", env={}, check=False, capture_output=True).returncode == 0
    except (OSError, IsolationError):
        return False


def _user_namespaces() -> Fact:
    if _can_make_namespaces():
        return Fact("user namespaces", "allowed")
    for switch, remedy in forbidding_switches():
        return Fact("user namespaces", f"forbidden: {switch}", remedy)
    ask = "a container whose seccomp profile allows unshare and mount (docker run --security-opt seccomp=unconfined)"
    return Fact("user namespaces", "refused, by no switch that is known here", ask)


def _bubblewrap(bwrap: str) -> Fact:
    found = shutil.which(bwrap)
    if found is None:
        return Fact("bubblewrap", "not installed", "apt-get install bubblewrap")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.split()
    return Fact("bubblewrap", f"{said[-1] if said else 'of unknown version'} ({found})")


def _seccomp() -> Fact:
    if not filter_bytes():
        return Fact("seccomp", f"no filter for {os.uname().machine}", "a machine of x86_64 or aarch64")
    if not Path("/proc/sys/kernel/seccomp/actions_avail").exists():
        return Fact("seccomp", "not in this kernel", "a kernel with CONFIG_SECCOMP_FILTER")
    status = Path("/proc/self/status").read_text()
    outer = re.search(r"^Seccomp:\s*2", status, flags=re.M)
    return Fact("seccomp", "filters work" + ("; this process is behind one already (a container's)" if outer else ""))


def _landlock() -> Fact:
    abi = landlock_abi()
    return Fact("Landlock", f"version {abi}, of which {NEEDED_ABI} are needed", why_no_landlock(abi) or "")


def _setpriv() -> Fact:
    if os.geteuid() != 0:
        return Fact("setpriv", "not needed: this user is not root")
    found = shutil.which("setpriv")
    return Fact("setpriv", found or "not installed", "" if found else "apt-get install util-linux")


def _proc() -> Fact:
    try:
        look_at_tree(os.getpid())
        proportional_memory(os.getpid())
        Path("/proc/1/stat").read_bytes()
    except (OSError, IsolationError) as error:
        return Fact("/proc", f"cannot be read ({error})", WATCHING_NEEDS)
    return Fact("/proc", "readable, with children and sums of maps")


def _compiler(language: str, command: str) -> Fact:
    return Fact(language, shutil.which(command) or "no compiler")
