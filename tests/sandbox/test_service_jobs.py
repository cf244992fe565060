"""The line in front of a service's pool: bounded, in order, counted, and what is cancelled is cancelled in the pool."""

import asyncio
from concurrent.futures import Future

import pytest

from sandbox import Execution, Limits, Program, SandboxError, Verdict
from sandbox.http_messages import HttpFault
from sandbox.service_jobs import JobLine, metrics_text

DONE = Execution(Verdict.OK, b"done", b"", 0, None, 0.5, 2.0, 0)


class HeldPool:
    """A pool whose programs end when the test says so."""

    limits = Limits()

    def __init__(self):
        self.futures = []

    def submit(self, program, limits=None):
        if program.source == "closed":
            raise SandboxError("the sandbox pool is closed")
        if program.source == "defect":
            raise ZeroDivisionError("a defect of the pool")
        future = Future()
        future.set_running_or_notify_cancel() if program.source == "running" else None
        self.futures.append((program, future))
        return future


def jobs(*sources):
    return [(Program(source), Limits()) for source in sources]


async def a_few_turns():
    for _ in range(10):
        await asyncio.sleep(0)


def in_a_loop(test):
    def run():
        asyncio.run(test(pool := HeldPool(), JobLine(pool, num_cells=1, max_queue=3)))

    run.__name__ = test.__name__
    return run


@in_a_loop
async def test_programs_reach_the_pool_in_order_and_no_more_than_two_per_cell(pool, line):
    tasks = line.start(jobs("a", "b", "c", "d"))
    await a_few_turns()
    assert [program.source for program, _ in pool.futures] == ["a", "b"]
    assert (line.health()["running"], line.health()["queued"]) == (1, 3)
    pool.futures[0][1].set_result(DONE)
    assert (await tasks[0]).stdout == b"done"
    await a_few_turns()
    assert [program.source for program, _ in pool.futures] == ["a", "b", "c"]
    health = line.health()
    assert (health["running"], health["queued"], health["verdicts"]["OK"]) == (1, 2, 1)
    assert (health["program_cpu_seconds"], health["program_wall_seconds"]) == (0.5, 2.0)


@in_a_loop
async def test_all_of_a_batch_or_none(pool, line):
    line.start(jobs("a", "b"))
    with pytest.raises(HttpFault, match="2 of 4 programs are there, 3 more came") as refused:
        line.start(jobs("c", "d", "e"))
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    assert line.health()["refused"] == 3
    assert len(line.start(jobs("c", "d"))) == 2
    with pytest.raises(HttpFault) as refused:
        line.start(jobs(*"abcde"))
    assert refused.value.status == 413, "it would never fit"


@in_a_loop
async def test_what_is_cancelled_leaves_the_line_and_the_pool(pool, line):
    in_pool, also, waiting, not_begun = line.start(jobs("a", "b", "c", "d"))
    not_begun.cancel()
    await a_few_turns()
    for task in (in_pool, waiting):
        task.cancel()
    await a_few_turns()
    assert [(program.source, future.cancelled()) for program, future in pool.futures] == [("a", True), ("b", False)]
    assert (line.health()["cancelled"], line.health()["running"], line.is_empty) == (3, 1, False)
    also.cancel()
    await a_few_turns()
    assert line.is_empty


@in_a_loop
async def test_what_the_pool_cannot_do_is_a_system_error(pool, line):
    closed, defect = await asyncio.gather(*line.start(jobs("closed", "defect")))
    assert (closed.verdict, closed.stderr) == (Verdict.SE, b"the sandbox pool is closed")
    assert (defect.verdict, defect.stderr) == (Verdict.SE, b"the pool failed: ZeroDivisionError: a defect of the pool")
    assert line.is_empty


@in_a_loop
async def test_a_closing_line_ends_what_it_has_and_takes_no_more(pool, line):
    (task,) = line.start(jobs("a"))
    line.is_closing = True
    with pytest.raises(HttpFault, match="shutting down") as refused:
        line.start(jobs("b"))
    assert refused.value.status == 503
    await a_few_turns()
    pool.futures[0][1].set_result(DONE)
    assert await task == DONE
    assert line.health()["status"] == "closing"


@in_a_loop
async def test_metrics_are_in_the_form_that_prometheus_reads(pool, line):
    lines = metrics_text({"tier": "bubblewrap", **line.health()}).splitlines()
    names = set()
    for text in lines:
        if text.startswith("# TYPE "):
            names.add(text.split()[2])
            assert text.split()[3] in ("counter", "gauge")
        else:
            name, value = text.rsplit(" ", 1)
            assert name.partition("{")[0] in names, f"{name} has no type before it"
            float(value)
