"""The grader pool: deadlines, deaths, rebirths, and nothing left behind.

The pool is given `builtins:eval`, so that a request can be any behaviour: a hang, a crash, an answer.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cispo.errors import ConfigError, RewardError
from rewards.grader_pool import Ending, GraderPool, GraderPoolConfig

FAST = GraderPoolConfig(size=1, deadline_seconds=1.0, tries=2)
FAST_ONCE = GraderPoolConfig(size=1, deadline_seconds=1.0, tries=1)
PATIENT = GraderPoolConfig(size=2, deadline_seconds=20.0)


@pytest.fixture
def pools():
    made = []

    def make(config, function_path="builtins:eval"):
        made.append(GraderPool(function_path, config))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_first_call_starts_one_worker_that_later_calls_keep(pools):
    pool = pools(PATIENT)
    assert pool.pids == ()
    assert pool.call("2 + 2").value == 4
    first = pool.pids
    assert len(first) == 1
    assert pool.call("[1, 'a', None]").value == [1, "a", None]
    assert pool.pids == first


def test_hang_is_killed_at_the_deadline_and_the_next_call_is_served(pools):
    pool = pools(FAST_ONCE)
    assert pool.call("1").value == 1
    (stuck,) = pool.pids
    outcome = pool.call("9**9**9")  # one C call that never looks at a signal handler
    assert outcome.ending is Ending.TIMEOUT
    assert not is_alive(stuck)
    assert pool.call("3").value == 3


def test_timeout_is_tried_again_on_a_fresh_worker(pools, tmp_path):
    # The first worker to make the folder hangs; the second finds it there and answers.
    folder = tmp_path / "tried"
    request = f"__import__('time').sleep(60) if not __import__('os').path.exists({str(folder)!r}) and not "
    request += f"__import__('os').mkdir({str(folder)!r}) else 'second'"
    assert pools(FAST).call(request).value == "second"


def test_crash_is_the_request_s_doing(pools):
    pool = pools(PATIENT)
    outcome = pool.call("__import__('os').abort()")
    assert outcome.ending is Ending.CRASHED
    assert str(-signal.SIGABRT) in outcome.note
    assert pool.call("5").value == 5


def test_worker_killed_from_outside_once_is_replaced_unnoticed(pools):
    pool = pools(PATIENT)
    pool.call("1")
    (victim,) = pool.pids
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(pool.call, "[__import__('time').sleep(1), 7][1]")
        time.sleep(0.2)
        os.kill(victim, signal.SIGKILL)
        assert answer.result().value == 7
    assert pool.pids != (victim,)


def test_worker_killed_from_outside_every_time_is_no_fault_of_the_request(pools):
    outcome = pools(PATIENT).call("__import__('os').kill(__import__('os').getpid(), 9)")
    assert outcome.ending is Ending.UNAVAILABLE


def test_worker_that_died_between_calls_is_replaced(pools):
    pool = pools(PATIENT)
    pool.call("1")
    (victim,) = pool.pids
    os.kill(victim, signal.SIGKILL)
    assert pool.call("2").value == 2


def test_function_that_raises_keeps_its_worker(pools):
    pool = pools(PATIENT)
    assert pool.call("1 / 0").note == "ZeroDivisionError"
    (pid,) = pool.pids
    assert pool.call("1").value == 1
    assert pool.pids == (pid,)


def test_memory_is_limited(pools):
    outcome = pools(GraderPoolConfig(size=1, memory_mb=256)).call("len(bytearray(400 * 2**20))")
    assert (outcome.ending, outcome.note) == (Ending.RAISED, "MemoryError")


def test_print_cannot_forge_a_reply(pools):
    pool = pools(PATIENT)
    assert pool.call("""print('{"value": "forged"}', flush=True)""").value is None
    assert pool.call("'honest'").value == "honest"


def test_worker_sees_no_secret_of_its_parent_and_writes_no_file(pools, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    pool = pools(PATIENT)
    assert pool.call("__import__('os').environ.get('WANDB_API_KEY')").value is None
    target = tmp_path / "file"
    pool.call(f"open({str(target)!r}, 'w', buffering=1).write('x\\n')")
    assert not target.exists() or target.stat().st_size == 0


def test_worker_that_cannot_start_says_why(pools):
    outcome = pools(PATIENT, "no_such_module:function").call("1")
    assert outcome.ending is Ending.UNAVAILABLE
    assert "no_such_module" in outcome.note


def test_start_that_fails_raises_the_reason(pools):
    with pytest.raises(RewardError, match="no_such_module"):
        pools(PATIENT, "no_such_module:function").start()


def test_death_during_the_start_is_no_fault_of_the_request(pools, tmp_path, monkeypatch):
    (tmp_path / "dies_when_imported.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    pool = pools(PATIENT, "dies_when_imported:function")
    with pytest.raises(RewardError, match="exit status 3"):
        pool.start()
    assert pool.call("1").ending is Ending.UNAVAILABLE


def test_many_threads_get_their_own_answers(pools):
    pool = pools(PATIENT)
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(pool.call, [f"{n} * {n}" for n in range(200)]))
    assert [outcome.value for outcome in outcomes] == [n * n for n in range(200)]
    assert 1 <= len(pool.pids) <= 2


def test_close_ends_calls_in_progress_and_leaves_no_process(pools):
    pool = pools(PATIENT)
    pool.call("1")
    pids = pool.pids
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(pool.call, "__import__('time').sleep(60)")
        time.sleep(0.2)
        pool.close()
        assert hanging.result().ending is Ending.UNAVAILABLE
    assert not any(map(is_alive, pids))
    assert pool.pids == ()
    assert pool.call("1").ending is Ending.UNAVAILABLE
    pool.close()


@pytest.mark.parametrize("busy", ["2 + 2", "9**9**9"])
def test_no_worker_outlives_a_parent_that_was_killed(busy):
    """Idle or stuck in a C call: the worker ends by itself."""
    program = f"""
import threading
from rewards.grader_pool import GraderPool, GraderPoolConfig
pool = GraderPool("builtins:eval", GraderPoolConfig(size=1, deadline_seconds=2.0))
pool.call("1")
print(pool.pids[0], flush=True)
pool.call({busy!r})
threading.Event().wait()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    worker = int(parent.stdout.readline())
    time.sleep(0.2)
    assert is_alive(worker)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_alive(worker))


def test_worker_survives_the_thread_that_started_it(pools):
    pool = pools(PATIENT)
    starter = threading.Thread(target=pool.call, args=("1",))
    starter.start()
    starter.join()
    (pid,) = pool.pids
    assert pool.call("1").value == 1
    assert pool.pids == (pid,)


@pytest.mark.parametrize("name", ["size", "deadline_seconds", "memory_mb", "tries"])
def test_config_refuses_zero(name):
    with pytest.raises(ConfigError, match=name):
        GraderPoolConfig(**{name: 0})
