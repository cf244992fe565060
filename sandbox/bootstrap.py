"""Runs inside the sandbox, as the parent of the stranger's program. Passed to the interpreter as text, never imported.

It is process 1 of its process namespace: when it ends, the kernel kills whatever is left there. The program is its
child, so that signals mean to it what they mean everywhere (process 1 ignores most of them), and so that the wait
status is exact. What it has to say goes over a pipe that is closed before the program's first line runs:

    up                          the interpreter works; the supervisor's clock starts
    compile_error | started     written by the child, which then closes the pipe
    ended STATUS KIB MICROS     wait status, largest resident size, processor time of the child and what it reaped

Arguments: the pipe to report on, and the resource limits as KIND=VALUE,... Costs that were taken out: importing
anything after the fork, or letting a forked interpreter take itself apart, copies most of its pages (4 ms of CPU).
"""

from __future__ import annotations

import _ctypes
import builtins
import posix
import resource
import sys
from _signal import SIG_IGN, SIGINT, default_int_handler, signal  # type: ignore[import-not-found]
from atexit import _run_exitfuncs

TYPE_CHECKING = False
if TYPE_CHECKING:  # never true: no import may cost a run anything
    from types import CodeType


def _wait_for_program(child: int, report: int) -> None:
    """Reap whatever process 1 inherits until the program itself has ended, and say how."""
    pid = 0
    while pid != child:
        pid, status, usage = posix.wait4(-1, 0)
    micros = int((usage.ru_utime + usage.ru_stime) * 1e6)
    posix.write(report, b"ended %d %d %d\n" % (status, usage.ru_maxrss, micros))


def _compile_program(report: int) -> CodeType:
    """The code of main.py. Does not return when there is none."""
    try:
        with open("main.py", "rb") as file:  # noqa: PTH123
            return compile(file.read(), "main.py", "exec", dont_inherit=True)
    except Exception as error:  # whatever the compiler makes of hostile text, it is the text's fault
        posix.write(report, b"compile_error\n")
        sys.__excepthook__(type(error), error.with_traceback(None), None)
        posix._exit(1)


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
        # The last real-time signal stands for "out of memory": unlike an exit code it is nobody else's.
        posix.write(2, b"MemoryError\n")
        posix.kill(posix.getpid(), 64)
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
    posix._exit(exit_code)


def _prepare_interpreter() -> dict[str, object]:
    """Make this interpreter look like one that was started on main.py; returns the globals of `__main__`."""
    for name in list(posix.environ):
        posix.unsetenv(name)
    posix.environ.clear()
    # The working directory comes last: a program may import its own files but not put them in the library's place.
    sys.path[:] = [folder for folder in sys.path if folder] + [posix.getcwd()]
    sys.argv[:] = ["main.py"]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # normally made by `site`, which is not loaded
    sys.modules["__main__"] = main = type(sys)("__main__")
    vars(main).update(__builtins__=builtins, __file__="main.py")
    return vars(main)


def _set_dumpable(is_dumpable: int) -> None:
    """prctl(PR_SET_DUMPABLE): at 0 nobody without capabilities may look into this process or its descriptors.

    Through the extension module itself: importing the package ctypes costs ten times as much CPU.
    """
    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    prctl = _ctypes.dlsym(program, "prctl")
    if _ctypes.call_function(prctl, (4, is_dumpable, 0, 0, 0)) != 0:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")


def _set_limits(argument: str) -> None:
    for limit in argument.split(","):
        kind, value = map(int, limit.split("="))
        allowed = resource.getrlimit(kind)[1]
        value = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(kind, (value, value))


def _main() -> None:
    report = int(sys.argv[1])
    posix.closerange(3, report)
    posix.closerange(report + 1, 1024)
    _set_dumpable(0)  # else the program, being the same user, could write to our memory and our report
    _set_limits(sys.argv[2])
    signal(SIGINT, SIG_IGN)  # process 1 is deaf to signals without a handler; Python gives this one a handler
    posix.write(report, b"up\n")
    namespace = _prepare_interpreter()
    child = posix.fork()
    if child != 0:
        _wait_for_program(child, report)
        posix._exit(0)
    _set_dumpable(1)  # it may look into itself, e.g. through /dev/stdin
    signal(SIGINT, default_int_handler)
    code = _compile_program(report)
    posix.write(report, b"started\n")
    posix.close(report)
    _end_program(_run_program(code, namespace), namespace)


_main()
