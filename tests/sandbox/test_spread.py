"""One pool over several sites: who gets a program, and what becomes of it when sites fail. Sites are hand-made."""

import asyncio
import threading

import pytest

from sandbox import Execution, Limits, Program, Verdict
from sandbox.spread import SiteBusy, SiteFault, SpreadPool, _Station


def execution(verdict=Verdict.OK, stdout=b"", stderr=b""):
    return Execution(verdict, stdout, stderr, 0, None, 0.0, 0.0, 0)


class Scripted:
    """A site that does what its script says, call after call, and then answers with its name."""

    def __init__(self, name, *script, num_cells=1, distance=0):
        self.name, self.num_cells, self.distance = name, num_cells, distance
        self.script, self.num_calls, self.is_closed = list(script), 0, False

    async def run(self, program, limits):
        self.num_calls += 1
        step = self.script.pop(0) if self.script else execution(stdout=self.name.encode())
        if isinstance(step, asyncio.Event):
            await step.wait()
            step = execution(stdout=self.name.encode())
        if isinstance(step, Exception):
            raise step
        return step

    async def close(self):
        self.is_closed = True


@pytest.fixture
def spread(monkeypatch):
    """spread(*sites, **settings) -> the pool; closed at the end. Sites rest shortly."""
    monkeypatch.setattr("sandbox.spread.FIRST_REST_SECONDS", 0.01)
    monkeypatch.setattr("sandbox.spread.LONGEST_REST_SECONDS", 0.04)
    pools = []

    def make(*sites, **settings):
        pools.append(SpreadPool(sites, Limits(), **{"size": 8, "tries": 3, "deadline_seconds": 30.0} | settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_a_site_that_fails_is_followed_by_another(spread):
    bad, good = Scripted("bad", *[SiteFault("no")] * 9), Scripted("good", distance=1)
    assert spread(bad, good).run(Program("")).stdout == b"good"
    assert bad.num_calls == 1


def test_the_last_failure_is_a_system_error_with_all_reasons(spread):
    bad = Scripted("bad", SiteFault("first"), SiteFault("second"), SiteFault("third"))
    told = spread(bad).run(Program(""))
    assert told.verdict is Verdict.SE
    assert told.stderr == b"bad: first; bad: second; bad: third"
    assert bad.num_calls == 3


def test_a_busy_site_costs_no_try(spread):
    busy = Scripted("busy", *[SiteBusy(0.01)] * 9)
    assert spread(busy, tries=1).run(Program("")).stdout == b"busy"
    assert busy.num_calls == 10


def test_a_system_error_is_tried_once_more_and_elsewhere(spread):
    ill, well = Scripted("ill", *[execution(Verdict.SE, stderr=b"disk")] * 9), Scripted("well", distance=1)
    assert spread(ill, well).run(Program("")).stdout == b"well"
    alone = Scripted("alone", *[execution(Verdict.SE, stderr=b"disk")] * 9)
    assert spread(alone, tries=5).run(Program("")).stderr == b"disk"
    assert alone.num_calls == 2


def test_no_other_verdict_is_ever_tried_again(spread):
    for verdict in set(Verdict) - {Verdict.SE}:
        site = Scripted("site", execution(verdict))
        assert spread(site).run(Program("")).verdict is verdict
        assert site.num_calls == 1


def test_a_deadline_covers_everything_and_says_what_was_tried(spread):
    never = Scripted("never", SiteFault("no"), asyncio.Event())
    told = spread(never, deadline_seconds=0.3).run(Program(""))
    assert told.verdict is Verdict.SE
    assert told.stderr == b"never: no; no verdict within 0.3 seconds"


def test_near_sites_first_then_by_load(spread):
    gates = [asyncio.Event() for _ in range(6)]
    near = Scripted("near", *gates[:3], num_cells=2)
    far = Scripted("far", *gates[3:], num_cells=2, distance=1)
    pool = spread(far, near)
    futures = []
    for calls in [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2), (3, 3)]:  # calls at the near site, at the far one
        futures.append(pool.submit(Program("")))
        while (near.num_calls + far.num_calls) != sum(calls):
            pass
        assert (near.num_calls, far.num_calls) == calls
    for gate in gates:
        pool._loop.call_soon_threadsafe(gate.set)
    assert sorted(future.result(timeout=30).stdout for future in futures) == [b"far"] * 3 + [b"near"] * 3


def test_no_more_than_size_are_under_way(spread):
    gate = asyncio.Event()
    site = Scripted("site", *[gate] * 20, num_cells=50)
    pool = spread(site, size=3)
    futures = [pool.submit(Program("")) for _ in range(20)]
    while site.num_calls < 3:
        pass
    passed = threading.Event()
    pool._loop.call_soon_threadsafe(passed.set)
    assert passed.wait(30)
    assert site.num_calls == 3
    pool._loop.call_soon_threadsafe(gate.set)
    assert {future.result(timeout=30).stdout for future in futures} == {b"site"}


def test_ten_thousand_programs_wait_in_line_and_all_come_through(spread):
    pool = spread(Scripted("a"), Scripted("b"))
    futures = [pool.submit(Program("")) for _ in range(10_000)]
    assert {future.result(timeout=60).stdout for future in futures} <= {b"a", b"b"}


def test_sites_are_closed_with_the_pool(spread):
    site = Scripted("site")
    spread(site).close()
    assert site.is_closed


def test_a_failing_site_is_left_alone(spread, monkeypatch):
    monkeypatch.setattr("sandbox.spread.FIRST_REST_SECONDS", 600.0)
    bad, good = Scripted("bad", *[SiteFault("no")] * 100), Scripted("good", distance=1)
    pool = spread(bad, good)
    assert {pool.run(Program("")).stdout for _ in range(50)} == {b"good"}
    assert bad.num_calls == 1


def test_rests_grow_with_each_failure_and_failures_of_one_moment_count_once():
    station = _Station(Scripted("site"))
    rests = []
    for now in (100.0, 100.1, 101.0, 110.0, 120.0, 140.0, 160.0):
        station.failed(now)
        rests.append(station.resting_until)
    assert rests == [100.5, 100.5, 102.0, 112.0, 124.0, 148.0, 168.0]
    station.answered()
    station.failed(200.0)
    assert station.resting_until == 200.5


def test_a_defect_is_raised_and_not_hidden_in_a_verdict(spread):
    with pytest.raises(ZeroDivisionError):
        spread(Scripted("broken", ZeroDivisionError())).run(Program(""))
