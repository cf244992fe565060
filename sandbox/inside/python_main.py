"""Runs a stranger's source as `__main__`, the way the interpreter would run main.py, and ends the process.

Costs that were taken out: importing anything, opening main.py through `io` (50 page faults), and letting a forked
interpreter take itself apart, which copies most of its pages (4 ms of CPU).
"""

from __future__ import annotations

import builtins
import posix
import sys
from atexit import _run_exitfuncs
from posix import _exit  # by a name that no program can redefine before its end

TYPE_CHECKING = False
if TYPE_CHECKING:  # never true: no import may cost a run anything
    from types import CodeType
    from typing import Protocol

    class Progress(Protocol):
        """Whom to tell how far it has come."""

        def set_stage(self, stage: int, /) -> None:
            """Stages are those of sandbox.inside.page.Stage."""

        def close(self) -> None:
            """Before the stranger's first line: no program may reach it."""


MAIN_FILE = "main.py"
COMPILING, REFUSED, RUNNING = 2, 3, 4  # as in sandbox.inside.page.Stage
OUT_OF_MEMORY = 64
"""Signals that a MemoryError was not caught: the last real-time one, which unlike an exit code is nobody else's."""


def prepare(hidden: str = "") -> None:
    """Make this interpreter look like one that was started on main.py. Done once, before anything is forked.

    hidden: packages of ours whose modules are taken out of sight.
    """
    for name in list(posix.environ):
        posix.unsetenv(name)
    posix.environ.clear()
    for module in [module for module in sys.modules if hidden and module.partition(".")[0] == hidden]:
        del sys.modules[module]
    sys.argv[:] = [MAIN_FILE]
    sys.orig_argv[:] = [sys.executable, MAIN_FILE]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # normally made by `site`, which is not loaded


def warm_up(source: str) -> None:
    """Do once, in this process, what every run does, so that a forked one finds it done."""
    exec(compile(source.encode(), MAIN_FILE, "exec", dont_inherit=True), {"__builtins__": builtins})
    sys.stdout.flush()


def run(sources: list[bytes], progress: Progress) -> None:
    """Take the one text out of `sources`, compile and run it in the current directory. Does not return."""
    # The working directory comes last: a program may import its own files but not put them in the library's place.
    sys.path[:] = [folder for folder in sys.path if folder] + [posix.getcwd()]
    sys.modules["__main__"] = main = type(sys)("__main__")
    namespace = vars(main)
    namespace.update(__builtins__=builtins, __file__=MAIN_FILE)
    progress.set_stage(COMPILING)
    try:
        code = compile(sources.pop(), MAIN_FILE, "exec", dont_inherit=True)
    except Exception as error:  # whatever the compiler makes of hostile text, it is the text's fault
        progress.set_stage(REFUSED)
        sys.__excepthook__(type(error), error.with_traceback(None), None)
        posix._exit(1)
    progress.set_stage(RUNNING)
    progress.close()
    del progress
    try:
        _end_program(_run_program(code, namespace), namespace)
    finally:
        _exit(1)  # what a program raises at its very end (an excepthook, an exit code's __str__) goes no further up


def _run_program(code: CodeType, namespace: dict[str, object]) -> int:
    """Run it as `__main__` and return the exit code that the interpreter would have given."""
    try:
        exec(code, namespace)
    except SystemExit as request:
        if request.code is None or isinstance(request.code, int):
            return int(request.code or 0) & 0xFF
        print(request.code, file=sys.stderr)
        return 1
    except MemoryError:
        posix.write(2, b"MemoryError\n")
        posix.kill(posix.getpid(), OUT_OF_MEMORY)
    except BaseException as error:
        frames = error.__traceback__.tb_next if error.__traceback__ else None  # without the one of this function
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        return 1
    return 0


def _end_program(exit_code: int, namespace: dict[str, object]) -> None:
    """What a program may count on at its end: threads joined, exit functions called, files flushed."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        _run_exitfuncs()
        sys.stdout.flush()
        namespace.clear()  # closes and so flushes the files that only its globals hold
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
    except BaseException:
        exit_code = exit_code or 120  # as the interpreter does when its output cannot be flushed
    _exit(exit_code)
