"""The outermost wall of a warm cell: the bubblewrap command that starts its zygote.

What a cell is made of: a read-only system, two devices, a /proc, no network, and user, process, mount, IPC, UTS and
cgroup namespaces of its own. The zygote keeps CAP_SYS_ADMIN in its user namespace, with which it makes the namespaces
of the jobs; no job has any. Every mount here is copied for each job (about 10 microseconds), so there are few.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from sandbox.host import become_nobody, folders_of, interpreter

_SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
_DEVICES = ("null", "urandom")
_INSIDE = Path(__file__).parent / "inside"
_MODULES = ("kernel", "page", "order", "python_main", "job", "zygote")  # each imports only those before it


@dataclass(frozen=True)
class CellKind:
    """What a cell has ready. Cells of one kind are interchangeable.

    Attributes:
        modules: imported before the first job.
        binds: folders of this machine by where the cell sees them, read-only.
        python: the cell's interpreter; "" for the system's.
    """

    modules: tuple[str, ...] = ()
    binds: tuple[tuple[str, str], ...] = ()
    python: str = ""


def cell_command(bwrap: str, kind: CellKind, control: int, page: int, filter_file: int) -> list[str]:
    """The command; its descriptors are passed on to the zygote. Raises IsolationError as root without setpriv."""
    python, folders = (kind.python, folders_of(kind.python)) if kind.python else interpreter()
    command = [*become_nobody(), bwrap, "--unshare-all", "--die-with-parent", "--as-pid-1", "--new-session"]
    command += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    command += ["--uid", "1000", "--gid", "1000", "--hostname", "box"]
    command += ["--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--ro-bind", "/usr", "/usr"]
    command += [*_system_folders(), *_hidden_project()]
    for inside, outside in (*((folder, folder) for folder in folders), *kind.binds):
        command += ["--ro-bind", outside, inside]
    for device in _DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        command += ["--symlink", f"/proc/self/{target}", f"/dev/{name}"]
    command += ["--proc", "/proc", "--dir", "/tmp", "--symlink", "/tmp", "/dev/shm", "--remount-ro", "/"]
    # As `-I`, which would ignore the hash seed: without it the order of a set differs between two runs of a program.
    command += [python, "-s", "-S", "-B", "-X", "utf8", "-c", "exec(open(0, closefd=False).read())"]
    return command + [str(control), str(page), str(filter_file), *kind.modules]


@functools.cache
def zygote_source() -> bytes:
    """What the cell's interpreter reads first: our modules as text, so that no file of ours lies in the cell."""
    texts = {f"sandbox.inside.{name}": (_INSIDE / f"{name}.py").read_text() for name in _MODULES}
    return f"""
import sys, types
for package in ("sandbox", "sandbox.inside"):
    sys.modules[package] = types.ModuleType(package)
for name, text in {texts!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules["sandbox.inside"], name.rpartition(".")[2], module)
    exec(compile(text, name, "exec"), vars(module))
sys.modules["sandbox.inside.zygote"].main(sys.argv[1:])
""".encode()


def _system_folders() -> list[str]:
    """On a merged-/usr system /lib and its like are links into /usr; elsewhere they are folders of their own."""
    options: list[str] = []
    for folder in map(Path, _SYSTEM_FOLDERS):
        if folder.is_symlink():
            options += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            options += ["--ro-bind", str(folder), str(folder)]
    return options


def _hidden_project() -> list[str]:
    """An empty folder over our own code, should it lie below /usr as it does in many containers."""
    project = Path(__file__).resolve().parents[1]
    return ["--tmpfs", str(project)] if project.is_relative_to("/usr") else []
