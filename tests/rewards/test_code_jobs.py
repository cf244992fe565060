"""Jobs run side by side, stop when nothing more is needed, and are tried again only for the sandbox's own faults."""

from concurrent.futures import Future

import pytest

from cispo.errors import ConfigError
from cispo.types import Verdict
from rewards.code_jobs import Job, Outcome, run_jobs
from rewards.reward import RewardsConfig
from sandbox import Execution, Program
from sandbox import Verdict as Ended

OK, FAULT = (Execution(verdict, b"", b"why", 0, None, 0.0, 0.0, 0) for verdict in (Ended.OK, Ended.SE))


class HandPool:
    """A pool whose jobs end when the test says so, in the order of their text."""

    def __init__(self, ends):
        self.ends = ends
        self.started, self.futures = [], []
        self.most = 0

    def submit(self, program, limits=None):
        future = Future()
        self.started.append(program.source)
        end = self.ends.get(program.source, OK)
        if isinstance(end, list):
            end = end.pop(0)
        if end is not None:
            future.set_result(end)
        self.futures.append(future)
        self.most = max(self.most, sum(not future.done() for future in self.futures))
        return future


def job(name, verdict=Verdict.CORRECT, then=None):
    return Job(Program(name), lambda execution: then or Outcome(verdict))


def run(pool, jobs, width=4, retries=1):
    return run_jobs(pool, jobs, goes_on=lambda outcome: outcome.passed, width=width, retries=retries)


def test_the_rest_is_not_started_after_a_failure():
    pool = HandPool({})
    outcomes = run(pool, [job("a"), job("b", Verdict.WRONG), *(job(name) for name in "cdefgh")])
    assert [outcome and outcome.passed for outcome in outcomes] == [
        True,
        False,
        None,
        None,
        None,
        None,
        None,
        None,
    ] or (outcomes[1].verdict is Verdict.WRONG and outcomes[3:] == [None] * 5)
    assert pool.started in (["a", "b", "c"], ["a", "b"])


def test_what_still_runs_is_cancelled():
    pool = HandPool({"c": None})
    outcomes = run(pool, [job("a"), job("b", Verdict.WRONG), job("c")])
    assert outcomes[2] is None
    assert pool.futures[2].cancelled()


def test_a_follow_up_belongs_to_its_test():
    pool = HandPool({})
    first = job("a", then=job("checker of a", Verdict.WRONG))
    assert [outcome.verdict for outcome in run(pool, [first])] == [Verdict.WRONG]
    assert pool.started == ["a", "checker of a"]


@pytest.mark.parametrize(
    ("faults", "retries", "verdict"), [(1, 1, "correct"), (2, 1, "system_error"), (1, 0, "system_error")]
)
def test_faults_of_the_sandbox_are_tried_again(faults, retries, verdict):
    pool = HandPool({"a": [FAULT] * faults + [OK]})
    (outcome,) = run(pool, [job("a")], retries=retries)
    assert outcome.verdict == verdict
    assert len(pool.started) == min(faults, retries) + 1


def test_no_weight_pays_for_tricks():
    with pytest.raises(ConfigError, match=r"rewards\.weights\.tricks must not be set"):
        RewardsConfig(weights={"answer": 1.0, "tricks": -1.0})
