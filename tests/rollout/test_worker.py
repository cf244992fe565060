"""A rollout worker: scoring beside sampling, refusals, failures, and settings that fit together."""

import threading
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

from cispo.errors import ConfigError, InvalidRequest, RewardError
from cispo.types import Prompt, Score, StopReason, Verdict
from rollout.engine import Completion
from rollout.sampling import Sampling
from rollout.worker import GroupRequest, RolloutWorker, SamplingConfig


class Engine:
    """Finishes one member per step, first come first served; a prompt of one token 13 is refused."""

    def __init__(self, fails=()):
        self.queue, self.requests, self.cancelled, self.fails = [], [], [], set(fails)

    def submit(self, requests):
        for request in requests:
            if request.token_ids == (13,):
                raise InvalidRequest("13 is refused.")
            self.requests.append(request)
            self.queue += [(request, member) for member in range(request.num_samples)]

    @property
    def has_work(self):
        return bool(self.queue)

    def step(self):
        request, member = self.queue.pop(0)
        failed = "the logits are NaN" if (request.id, member) in self.fails else ""
        return [
            Completion(
                request_id=request.id,
                member=member,
                token_ids=np.array([40 + member]),
                logp=np.array([-1.0], dtype=np.float32),
                version=np.array([2]),
                action_mask=np.array([True]),
                stop_reason=StopReason.STOP,
                failed=failed,
            )
        ]

    def cancel(self, ids):
        self.cancelled += ids
        self.queue = [(request, member) for request, member in self.queue if request.id not in ids]


class Scorer:
    """Scores at once, or when the test says so."""

    def __init__(self, *, waits=False, error=None):
        self.waits, self.error, self.pending, self.texts, self.closed = waits, error, [], [], False

    def submit(self, prompt, trajectory, text):
        self.texts.append(text)
        future = Future()
        if self.error:
            future.set_exception(self.error)
        elif self.waits:
            self.pending.append(future)
        else:
            future.set_result(Score(1.0, True, {"answer": 1.0}, Verdict.CORRECT))
        return future

    def release(self):
        for future in self.pending:
            future.set_result(Score(0.0, False, {"answer": 0.0}, Verdict.WRONG))

    def close(self):
        self.closed = True


def request(index, token_ids=(7, 8), num_samples=2, **more):
    return GroupRequest(index, Prompt(f"p{index}", "chain", "x", token_ids, "y"), num_samples, 100 + index, 16, **more)


def worker(engine=None, scorer=None, **sampling):
    return RolloutWorker(
        engine or Engine(), scorer or Scorer(), lambda ids: f"text of {list(ids)}", Sampling(**sampling)
    )


def test_groups_come_back_scored_with_their_members_in_order():
    scorer = Scorer()
    one = worker(scorer=scorer)
    one.submit([request(0), request(1, num_samples=3)])
    finished = one.advance(10.0)
    assert [group.index for group in finished.groups] == [0, 1]
    assert [len(group.trajectories) for group in finished.groups] == [2, 3]
    assert [t.token_ids_T.tolist() for t in finished.groups[1].trajectories] == [[7, 8, 40], [7, 8, 41], [7, 8, 42]]
    assert scorer.texts == [f"text of [{40 + member}]" for member in (0, 1, 0, 1, 2)]
    assert (finished.failed, finished.num_steps) == ({}, 5)


def test_a_refused_request_is_reported_and_the_others_are_done():
    one = worker()
    one.submit([request(0, token_ids=(13,)), request(1)])
    finished = one.advance(10.0)
    assert finished.failed == {0: "13 is refused."}
    assert [group.index for group in finished.groups] == [1]
    assert one.advance(10.0).failed == {}, "a refusal is reported once"


def test_a_member_that_fails_costs_its_group_and_frees_the_engine():
    engine = Engine(fails={("0", 1)})
    one = worker(engine)
    one.submit([request(0, num_samples=4), request(1)])
    finished = one.advance(10.0)
    assert finished.failed == {0: "the logits are NaN"}
    assert [group.index for group in finished.groups] == [1]
    assert engine.cancelled == ["0"]


def test_what_was_cut_of_a_group_that_fails_is_not_gone_on_with():
    engine = Engine(fails={("0", 1)})
    one = worker(engine)
    one.submit([request(0, num_samples=4), request(1)])
    one._cut = [SimpleNamespace(meta={"request": {"id": name}}) for name in ("0", "1")]
    assert one.advance(10.0).failed == {0: "the logits are NaN"}
    assert [state.meta["request"]["id"] for state in one._cut] == ["1"]


def test_what_waits_for_its_reward_is_counted():
    one = worker(scorer=Scorer(waits=True))
    one.submit([request(0)])
    finished = one.advance(0.02)
    assert (finished.groups, finished.num_left, finished.num_unscored) == ((), 0, 2)


def test_a_slow_score_holds_back_its_group_only_until_it_comes():
    scorer = Scorer(waits=True)
    one = worker(scorer=scorer)
    one.submit([request(0)])
    assert one.advance(0.02).groups == ()
    threading.Timer(0.05, scorer.release).start()
    assert [group.index for group in one.advance(10.0).groups] == [0]


def test_a_faulty_reward_is_raised_and_not_scored():
    one = worker(scorer=Scorer(error=RewardError("line 3 raised")))
    one.submit([request(0)])
    with pytest.raises(RewardError, match="line 3 raised"):
        one.advance(10.0)


def test_requests_carry_the_windows_the_seed_and_the_way_of_sampling():
    engine = Engine()
    one = worker(engine, temperature=0.7, stop_token_ids=(3,))
    one.submit([request(0), request(1, greedy=True)])
    sampled, greedy = engine.requests
    assert (sampled.seed, sampled.sampling.temperature, sampled.sampling.max_new_tokens) == (100, 0.7, 16)
    assert (greedy.sampling.temperature, greedy.sampling.stop_token_ids) == (0.0, (3,))


def test_nothing_to_do_is_over_at_once_and_closing_ends_the_scorer():
    scorer = Scorer()
    one = worker(scorer=scorer)
    assert one.advance(1e9).groups == ()
    one.close()
    assert scorer.closed


@pytest.mark.parametrize("settings", [{"top_p": 0.9}, {"top_k": 20}])
def test_truncated_sampling_is_refused_unless_its_bias_is_accepted(settings):
    with pytest.raises(ConfigError, match="biases every importance ratio"):
        SamplingConfig(**settings)
    accepted = SamplingConfig(**settings, allow_biased_ratio=True)
    assert accepted.at(Sampling(), 8).top_p == accepted.top_p


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0, "allow_biased_ratio": True}, "top_p"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": ((0, 8), (10, 0.5))}, "max_new_tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        SamplingConfig(**settings)
