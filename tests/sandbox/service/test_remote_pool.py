"""The remote tier is the local pool seen from afar: equal verdicts, and no fault of a network becomes one."""

import asyncio
import logging
import signal
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from sandbox import IsolationError, Limits, Program, RemotePool, SandboxError, SandboxPool, Verdict
from sandbox.service_config import RemoteConfig

PROGRAMS = {
    Verdict.OK: Program(
        "print(sum(map(int, input().split())), open('data').read())", stdin="2 3", files={"data": b"d"}
    ),
    Verdict.TLE: Program("while True: pass"),
    Verdict.MLE: Program("x = b'x' * (300 << 20)\nprint(len(x))"),
    Verdict.OLE: Program("import sys\nwhile True: sys.stdout.write('x' * 65536)"),
    Verdict.RE: Program("import os, sys\nprint('before', flush=True)\nsys.stderr.write('why')\nos.abort()"),
    Verdict.CE: Program("def f(:"),
}


@pytest.fixture(scope="module")
def local(tight):
    with SandboxPool(2, tight) as pool:
        yield pool


@pytest.fixture(scope="module")
def remote(service):
    with service.pool() as pool:
        yield pool


def told(execution):
    """What does not differ between two runs of one program."""
    return execution.verdict, execution.stdout, execution.stderr, execution.exit_code, execution.signal


@pytest.mark.parametrize("verdict", PROGRAMS)
def test_each_verdict_is_that_of_the_local_pool(local, remote, verdict):
    execution = remote.run(PROGRAMS[verdict])
    assert execution.verdict is verdict
    assert told(execution) == told(local.run(PROGRAMS[verdict]))


@pytest.mark.parametrize(
    "program",
    [
        Program("import sys; sys.stdout.buffer.write(bytes(range(256)) * 9)"),
        Program("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\xed\\xa0\\x80'); sys.stderr.buffer.write(b'\\x80')"),
        Program("print('\U0001f40d \\0 né \\x1b\\r\\n')"),
        Program("print(input()[::-1])", stdin="né\U0001f40d"),
        Program("import sys; print(sys.stdin.buffer.read())", stdin=b"\xff\x00\r\n"),
        Program("# \udc80\nprint(1)"),
        Program("raise SystemExit(99)"),
        Program("import os; os.kill(os.getpid(), 9)"),
        Program(""),
    ],
    ids=["all bytes", "no UTF-8", "unicode out", "unicode in", "bytes in", "surrogate", "exit code", "signal", "empty"],
)
def test_bytes_and_codes_are_those_of_the_local_pool(local, remote, program):
    assert told(remote.run(program)) == told(local.run(program))


def test_five_megabytes_of_input_arrive_whole(remote):
    stdin = bytes(range(256)) * 20_000
    source = "import sys, hashlib; data = sys.stdin.buffer.read(); print(len(data), hashlib.md5(data).hexdigest())"
    limits = Limits(cpu_seconds=5, wall_seconds=20)
    assert remote.run(Program(source, stdin=stdin), limits).stdout == b"5120000 dcf6a99f83b3a50b2ff3ecc6490d966f\n"


def test_a_hundred_and_twenty_eight_clients_at_once_get_each_its_own(service):
    with service.pool(size=128) as pool:
        futures = [pool.submit(Program(f"print({n})")) for n in range(128)]
        assert [future.result(timeout=100).stdout for future in futures] == [b"%d\n" % n for n in range(128)]


def test_callers_of_many_threads_may_share_a_pool(remote):
    outputs = {}

    def call(n):
        outputs[n] = remote.run(Program(f"print({n})")).stdout

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outputs == {n: b"%d\n" % n for n in range(8)}


def test_a_longer_wait_than_the_longest_silence_is_no_fault(serve):
    """A line of programs that takes seconds, a service that shows life every 0.2 s, a client that bears 0.8 s."""
    one_cell = serve(size=1, heartbeat_seconds=0.2)
    with one_cell.pool(silence_seconds=0.8) as pool:
        futures = [pool.submit(Program("import time; time.sleep(1); print(1)")) for _ in range(4)]
        assert {future.result(timeout=60).verdict for future in futures} == {Verdict.OK}


def test_a_full_line_is_waited_for(serve):
    narrow = serve(size=1, max_queue=0)
    with narrow.pool(size=4) as pool:
        futures = [pool.submit(Program(f"print({n})")) for n in range(4)]
        assert [future.result(timeout=60).stdout for future in futures] == [b"%d\n" % n for n in range(4)]


def test_a_service_that_is_killed_hands_its_programs_to_another(serve, eventually):
    doomed, heir = serve(), serve()
    with doomed.pool(heir) as pool:
        slow = [pool.submit(Program("import time; time.sleep(2); print('done')")) for _ in range(4)]
        eventually(lambda: all(station.in_flight for station in pool._stations))
        doomed.send(signal.SIGKILL)
        doomed.end()
        assert [future.result(timeout=60).stdout for future in slow] == [b"done\n"] * 4
        assert pool.run(Program("print(2)")).stdout == b"2\n"


def test_a_service_that_is_killed_for_good_is_a_system_error(serve, eventually):
    doomed = serve()
    with doomed.pool(tries=2) as pool:
        slow = pool.submit(Program("import time; time.sleep(3)"))
        eventually(lambda: pool._stations[0].in_flight)
        doomed.send(signal.SIGKILL)
        doomed.end()
        execution = slow.result(timeout=60)
        assert execution.verdict is Verdict.SE
        assert doomed.url.encode() in execution.stderr
        assert b"Connection refused" in execution.stderr


def test_a_service_that_hangs_is_noticed(serve, eventually):
    frozen, well = serve(heartbeat_seconds=0.2), serve(heartbeat_seconds=0.2)
    with frozen.pool(well, silence_seconds=1.0) as pool:
        frozen.send(signal.SIGSTOP)
        try:
            futures = [pool.submit(Program(f"print({n})")) for n in range(4)]
            assert [future.result(timeout=60).stdout for future in futures] == [b"%d\n" % n for n in range(4)]
        finally:
            frozen.send(signal.SIGCONT)


def test_a_service_that_is_stopped_ends_what_it_accepted(serve, eventually):
    stopping, other = serve(), serve()
    with stopping.pool(other) as pool:
        slow = [pool.submit(Program("import time; time.sleep(2); print('done')")) for _ in range(4)]
        eventually(lambda: all(station.in_flight for station in pool._stations))
        stopping.send(signal.SIGTERM)
        eventually(lambda: "stopping" in stopping.log.read_text())
        later = [pool.submit(Program("print('later')")) for _ in range(4)]
        assert [future.result(timeout=60).stdout for future in slow] == [b"done\n"] * 4
        assert [future.result(timeout=60).stdout for future in later] == [b"later\n"] * 4
        assert stopping.end() == 0
        assert "sandbox service stopped" in stopping.log.read_text()


def test_a_second_signal_does_not_wait(serve, eventually):
    stopping = serve()
    with stopping.pool(tries=1) as pool:
        slow = pool.submit(Program("import time; time.sleep(4)"))
        eventually(lambda: pool._stations[0].in_flight)
        stopping.send(signal.SIGTERM)
        eventually(lambda: "stopping" in stopping.log.read_text())
        stopping.send(signal.SIGTERM)
        assert stopping.end() == 0
        assert slow.result(timeout=60).verdict is Verdict.SE


def test_a_task_of_asyncio_can_wait_and_be_cancelled(serve):
    async def both(pool):
        sleeping = asyncio.create_task(pool.run_async(Program("import time\ntime.sleep(60)")))
        await asyncio.sleep(0.3)
        sleeping.cancel()
        execution = await pool.run_async(Program("print(42)"))
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        return execution

    with serve(size=1).pool(limits=Limits(wall_seconds=60)) as pool:
        assert asyncio.run(both(pool)).stdout == b"42\n"


def test_a_cancelled_future_frees_its_place(serve, eventually):
    one_cell = serve(size=1)
    with one_cell.pool(size=1) as pool:
        running = pool.submit(Program("import time; time.sleep(250)"), Limits(wall_seconds=280))
        waiting = pool.submit(Program("print(1)"))
        eventually(lambda: pool._stations[0].in_flight)
        assert waiting.cancel()
        assert running.cancel()
        with pytest.raises(CancelledError):
            running.result()
        assert pool.submit(Program("print(2)")).result(timeout=60).stdout == b"2\n"


def test_a_closed_pool_says_so_and_leaves_nothing(service):
    before = set(Path("/proc/self/fd").iterdir()), threading.active_count()
    pool = service.pool()
    assert pool.run(Program("print(1)")).stdout == b"1\n"
    pool.close()
    pool.close()
    with pytest.raises(SandboxError, match="closed"):
        pool.submit(Program(""))
    assert (set(Path("/proc/self/fd").iterdir()), threading.active_count()) == before


def test_closing_drops_what_waits_and_lets_end_what_runs(service, eventually):
    pool = service.pool(size=1)
    running = pool.submit(Program("import time; time.sleep(1); print(1)"))
    waiting = pool.submit(Program("print(2)"))
    eventually(lambda: pool._stations[0].in_flight)
    pool.close()
    assert running.result(timeout=0).stdout == b"1\n"
    assert waiting.cancelled()


def test_a_program_that_the_service_refuses_is_a_system_error_that_says_why(serve):
    strict = serve(max_request_bytes=20_000)
    with strict.pool() as pool:
        execution = pool.run(Program("print(1)", stdin="x" * 30_000))
        assert execution.verdict is Verdict.SE
        assert b"a body may have 20000 bytes" in execution.stderr
        assert pool.run(Program("print(1)"), Limits(wall_seconds=1000)).verdict is Verdict.SE
        assert pool.run(Program("print(1)")).stdout == b"1\n"


def test_one_dead_service_of_two_is_a_warning(serve, dead_url, caplog):
    well = serve()
    config = RemoteConfig(urls=(dead_url, well.url), token_file=str(well.token_file))
    with caplog.at_level(logging.WARNING), RemotePool(config) as pool:
        assert dead_url in caplog.text
        assert {pool.run(Program("print(1)")).stdout for _ in range(3)} == {b"1\n"}


def test_no_living_service_is_one_sentence_at_the_start(service, dead_url):
    with pytest.raises(IsolationError, match=r"^programs cannot be isolated because no sandbox service answers \(http"):
        RemotePool(RemoteConfig(urls=(dead_url,), token_file=str(service.token_file)))


def test_a_wrong_token_is_one_sentence_at_the_start(service, monkeypatch):
    monkeypatch.setenv("CISPO_SANDBOX_TOKEN", "not-the-token-of-this-service")
    with pytest.raises(
        IsolationError, match=r"^the sandbox service http://\S+ refuses the token: sandbox.remote.token"
    ):
        service.pool()


def test_limits_that_the_service_does_not_grant_are_one_sentence_at_the_start(service):
    with pytest.raises(IsolationError, match=r"grants at most .* less than sandbox.limits \(wall_seconds=1000\)"):
        service.pool(limits=Limits(wall_seconds=1000))


def test_a_token_file_must_be_closed_and_full(service, tmp_path):
    for content, mode, told in (
        ("x" * 40, 0o644, "chmod 600"),
        ("short", 0o600, "16 to 512"),
        (None, 0, "No such file"),
    ):
        path = tmp_path / str(mode)
        if content is not None:
            path.write_text(content)
            path.chmod(mode)
        with pytest.raises(SandboxError, match=told):
            RemotePool(RemoteConfig(urls=(service.url,), token_file=str(path)))


def test_the_made_token_is_long_and_its_file_closed(service):
    assert len(service.token) >= 32
    assert service.token_file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in service.token_file.parent.iterdir()] == ["token"], "nothing half-made is left"
    assert service.token not in service.log.read_text()
    assert service.token not in Path(f"/proc/{service.process.pid}/cmdline").read_text()


@pytest.mark.parametrize(
    "url", ["10.0.0.7:8700", "https://a:1", "http://a", "http://a:b", "http://a:1/x", "http://u@a:1", "http://a:99999"]
)
def test_an_address_of_another_form_is_refused(url):
    with pytest.raises(ValueError, match="http://host:port"):
        RemoteConfig(urls=(url,))
