"""Runs inside the sandbox, as the parent of the stranger's program. Passed to the interpreter as text, never imported.

It is process 1 of its process namespace: when it ends, the kernel kills whatever is left there. The program is its
child, so that signals mean to it what they mean everywhere (process 1 ignores most of them), and so that the wait
status is exact. What it has to say goes over a pipe that is closed before the program's first line runs:

    up                          the interpreter works; the supervisor's clock starts
    compile_error | started     written by the child, which then closes the pipe
    ended STATUS KIB MICROS     wait status, largest resident size, processor time of the child and what it reaped

Arguments: the pipe to report on, and the resource limits as KIND=VALUE,... Only built-in modules and one small
extension are imported: each file read at this point costs every single run.
"""


def _child(report: int, limits: str) -> None:
    """Take on the limits, then compile and run main.py as `__main__`, as the interpreter would have done."""
    import builtins
    import posix
    import resource
    import sys

    for limit in limits.split(","):
        kind, value = map(int, limit.split("="))
        allowed = resource.getrlimit(kind)[1]
        if allowed != resource.RLIM_INFINITY:
            value = min(value, allowed)
        resource.setrlimit(kind, (value, value))

    for name in list(posix.environ):
        posix.unsetenv(name)
    posix.environ.clear()
    # The working directory comes last: a program may import its own files but not put them in the library's place.
    sys.path[:] = [folder for folder in sys.path if folder] + [posix.getcwd()]
    sys.argv[:] = ["main.py"]
    builtins.exit = builtins.quit = sys.exit  # normally made by `site`, which is not loaded
    try:
        with open("main.py", "rb") as file:
            code = compile(file.read(), "main.py", "exec", dont_inherit=True)
    except Exception as error:  # whatever the compiler thinks of hostile text, it is the text's fault
        posix.write(report, b"compile_error\n")
        sys.__excepthook__(type(error), error.with_traceback(None), None)
        posix._exit(1)
    posix.write(report, b"started\n")
    posix.closerange(3, 1024)
    namespace = sys.modules["__main__"].__dict__
    for name in ("_child", "_init", "__doc__"):
        namespace.pop(name)
    namespace.update(__doc__=None, __file__="main.py")
    del allowed, file, kind, limit, limits, name, report, value
    try:
        exec(code, namespace)
    except MemoryError:
        # The last real-time signal stands for "out of memory": unlike an exit code it is nobody else's.
        posix.write(2, b"MemoryError\n")
        posix.kill(posix.getpid(), 64)


def _init() -> None:
    """Start the program, wait for it and report how it ended."""
    import posix
    import sys
    from _signal import SIG_IGN, SIGINT, default_int_handler, signal

    report, limits = int(sys.argv[1]), sys.argv[2]
    signal(SIGINT, SIG_IGN)  # process 1 is deaf to all signals without a handler, and Python gives this one a handler
    posix.write(report, b"up\n")
    child = posix.fork()
    if child == 0:
        signal(SIGINT, default_int_handler)
        return _child(report, limits)
    pid = 0
    while pid != child:
        pid, status, usage = posix.wait4(-1, 0)
    micros = int((usage.ru_utime + usage.ru_stime) * 1e6)
    posix.write(report, b"ended %d %d %d\n" % (status, usage.ru_maxrss, micros))
    posix._exit(0)


_init()
