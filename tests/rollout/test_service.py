"""The driver's side of rollouts, over small hand-written workers: waves, limits, recovery, and nothing lost."""

import logging
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.errors import DeadlineExceeded, RewardError, WorkerDied
from cispo.types import Group, Prompt, Score, StopReason, Trajectory, Verdict
from rollout.requests import Finished
from rollout.service import Draw, RolloutService
from rollout.worker_pool import RolloutConfig


class Counter:
    """A prompt stream 0, 1, 2, ..."""

    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return Prompt(f"p{self.count - 1}", "chain", "x", (self.count,), "y")

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]


class Worker:
    """A worker that finishes groups at once, in a pace and order that the test gives.

    `pace` says how many groups each `advance` finishes (then all of them), `flat` and `failing` which indices come to
    nothing, `dies_in` the methods that each kill the process once.
    """

    def __init__(self, name, *, pace=(), flat=(), failing=(), dies_in=(), last_first=False, silent=False):
        self.name = name
        self.pace, self.flat, self.failing, self.dies_in = list(pace), set(flat), set(failing), list(dies_in)
        self.last_first, self.silent = last_first, silent
        self.queue, self.version = [], None
        self.seen, self.num_restarts, self.has_left = [], 0, False

    def started(self):
        return self.call("start")

    def start(self):
        return 0

    def beside(self, method, *arguments):
        return self.call(method, *arguments)

    def snapshot(self):
        return {}

    def call(self, method, *arguments):
        future = Future()
        if self.silent:
            return future
        try:
            if method in self.dies_in:
                self.dies_in.remove(method)
                raise WorkerDied(f"The process of {self.name} died.")
            future.set_result(getattr(self, method)(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self):
        assert not self.queue, f"{self.name} was ended with work to do"
        self.has_left = True

    def restart(self):
        self.queue, self.version, self.silent = [], None, False
        self.num_restarts += 1

    def load_weights(self, package, version):
        self.version = version

    def submit(self, requests):
        assert self.version is not None, "a worker without weights was given work"
        self.queue += requests
        self.seen += [request.index for request in requests]

    def advance(self, seconds):
        count = self.pace.pop(0) if self.pace else len(self.queue)
        ordered = sorted(self.queue, key=lambda request: request.index, reverse=self.last_first)
        done, self.queue = ordered[:count], ordered[count:]
        failed = {request.index: "no luck" for request in done if request.index in self.failing}
        return Finished(tuple(self.group(r) for r in done if r.index not in failed), failed, num_steps=1)

    def group(self, request):
        values = [1.0] * request.num_samples
        if request.index not in self.flat:
            values[0] = 0.0
        trajectory = Trajectory(
            token_ids_T=np.array([*request.prompt.token_ids, request.seed % 1000]),
            action_mask_T=np.array([False, True]),
            behaviour_logp_T=np.zeros(2, dtype=np.float32),
            version_T=np.array([-1, self.version]),
            stop_reason=StopReason.STOP,
        )
        scores = tuple(Score(v, v > 0, {}, Verdict.CORRECT) for v in values)
        return Group(request.index, request.prompt, (trajectory,) * request.num_samples, scores)


def differs(group):
    return len(set(group.rewards_G.tolist())) > 1


def service_of(*workers, prompts=None, staleness=0, start_seconds=60.0, **config):
    draw = Draw(seed=1, group_size=2, max_new_tokens=8, max_staleness=staleness)
    config = RolloutConfig(**{"in_flight": 99} | config)
    service = RolloutService(workers, prompts or Counter(), draw, config, start_seconds=start_seconds)
    service.load_weights("package", 0)
    return service


def take(service, num_groups=4, version=0, staleness=0):
    return service.take(num_groups, oldest_version=version - staleness, keep=differs)


def indices(harvest):
    return [group.index for group in harvest.groups]


def untaken(service):
    return [entry.index for entry in service._ledger.untaken({})]


def test_a_wave_is_spread_evenly_and_the_next_is_drawn_when_it_is_over():
    a, b = Worker("a", flat={0, 3}, last_first=True), Worker("b", flat={0, 3}, pace=[0, 1])
    harvest = take(service_of(a, b))
    assert (a.seen, b.seen) == ([0, 2, 4], [1, 3, 5])  # the second wave replaces the two flat groups
    assert indices(harvest) == [1, 2, 4, 5]
    assert (harvest.drawn, harvest.dropped) == (6, {"flat": 2})
    assert [group.index for group in harvest.seen] == [0, 1, 2, 3, 4, 5]


def test_the_draw_limit_ends_a_step_in_which_everything_is_flat():
    worker = Worker("a", flat=range(100))
    harvest = take(service_of(worker, draw_limit=2.5), num_groups=4)
    assert (indices(harvest), harvest.drawn, harvest.dropped) == ([], 10, {"flat": 10})
    assert worker.seen == list(range(10))


def test_failed_groups_are_counted_told_and_replaced(caplog):
    with caplog.at_level(logging.WARNING):
        harvest = take(service_of(Worker("a", failing={1, 2})))
    assert indices(harvest) == [0, 3, 4, 5]
    assert (harvest.drawn, harvest.dropped) == (6, {"failed": 2})
    assert "prompt p1 came to nothing: no luck" in caplog.text


def test_groups_older_than_allowed_are_dropped_as_stale():
    service = service_of(Worker("a"))
    with_old_weights = service.take(2, oldest_version=1, keep=differs)
    assert (with_old_weights.groups, with_old_weights.dropped) == ((), {"stale": 8})


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=2, max_size=2),
    st.lists(st.booleans(), min_size=2, max_size=2),
    st.sets(st.integers(0, 12)),
)
def test_who_is_faster_changes_neither_groups_nor_dispatch(paces, orders, flat):
    workers = [
        Worker(name, pace=pace, last_first=last_first, flat=flat)
        for name, pace, last_first in zip("ab", paces, orders, strict=True)
    ]
    even = [Worker(name, flat=flat) for name in "ab"]
    hurried, calm = service_of(*workers), service_of(*even)
    for step in range(2):
        left, right = take(hurried), take(calm)
        assert indices(left) == indices(right), step
        assert [g.trajectories[0].token_ids_T.tolist() for g in left.groups] == [
            g.trajectories[0].token_ids_T.tolist() for g in right.groups
        ]
        assert (left.drawn, left.dropped) == (right.drawn, right.dropped)
    assert [worker.seen for worker in workers] == [worker.seen for worker in even]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2),
    st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=2, max_size=2),
    st.sets(st.integers(0, 20)),
    st.integers(0, 3),
)
def test_a_restored_service_draws_every_prompt_exactly_once(staleness, paces, flat, steps_before):
    """Whatever was under way, ready or not yet drawn when the state was taken, the next one takes it up."""

    def run(service, first, num_steps):
        for step in range(first, first + num_steps):
            service.load_weights("package", step)
            yield take(service, 2, step, staleness)

    workers = [Worker(name, pace=pace, flat=flat) for name, pace in zip("ab", paces, strict=True)]
    before = service_of(*workers, staleness=staleness)
    taken = [g for harvest in run(before, 0, steps_before) for g in harvest.seen]
    after = service_of(Worker("c", flat=flat), Worker("d", flat=flat), prompts=Counter(), staleness=staleness)
    with tempfile.TemporaryDirectory() as folder:
        before.save(Path(folder))
        after.load(Path(folder))
    taken += [g for harvest in run(after, steps_before, 4) for g in harvest.seen]
    ids = [group.index for group in taken]
    assert len(set(ids)) == len(ids), "a prompt was repeated"
    assert sorted([*ids, *untaken(after)]) == list(range(after._ledger.next_index)), "a prompt was lost"
    assert all(group.prompt.id == f"p{group.index}" for group in taken), "a prompt changed its index"


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_work_is_kept_ahead_and_nothing_stale_is_ever_taken(staleness):
    a, b = Worker("a"), Worker("b")
    service = service_of(a, b, staleness=staleness)
    for step in range(8):
        service.load_weights("package", step)
        harvest = take(service, 4, step, staleness)
        assert len(harvest.groups) == 4
        assert "stale" not in harvest.dropped, "more was drawn ahead than max_staleness steps can use"
        assert all(step - staleness <= group.oldest_version <= step for group in harvest.groups)
        assert len(untaken(service)) == 4 * staleness, "the workers have max_staleness steps of groups ahead of them"


@given(
    staleness=st.integers(0, 2),
    changes=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    pace=st.lists(st.integers(0, 2), max_size=6),
)
@settings(deadline=None)
def test_workers_join_and_leave_and_no_group_is_lost(staleness, changes, pace):
    workers, taken = [Worker("rollout-0", pace=pace)], []
    service = service_of(*workers, staleness=staleness)
    for step, wanted in enumerate(changes):
        service.load_weights("package", step)
        for _ in range(wanted - len(service.pool.staying)):
            workers.append(Worker(f"rollout-{len(workers)}", pace=pace))
            service.pool.add(workers[-1])
        for station in service.pool.staying[wanted:]:
            service.pool.retire(station.name)
        taken += [group.index for group in take(service, 4, step, staleness).seen]
        assert len(service.pool.staying) == wanted
    assert len(set(taken)) == len(taken)
    assert sorted([*taken, *untaken(service)]) == list(range(service._ledger.next_index)), "a prompt was lost"
    up = {station.worker for station in service.pool.stations}
    assert all(worker in up or worker.has_left for worker in workers)


def test_a_worker_without_work_leaves_at_once_and_the_last_one_stays():
    a, b = Worker("a"), Worker("b", dies_in=["snapshot"])
    service = service_of(a, b)
    service.pool.order_snapshots()
    service.pool.retire("b")
    assert b.has_left and [station.name for station in service.pool.stations] == ["a"]
    service.pool.retire("a")
    assert not a.has_left and len(take(service).groups) == 4
    assert b.num_restarts == 0, "the answer of one that has left was taken for a death"


def test_workers_sample_ahead_while_the_learner_learns():
    worker = Worker("a", pace=[4])
    service = service_of(worker, staleness=1)
    take(service, 4, 0, 1)
    assert worker.queue == [], "the groups ahead were begun before take returned"
    service.load_weights("package", 1)
    assert [group.oldest_version for group in take(service, 4, 1, 1).groups] == [0, 0, 0, 0]


@pytest.mark.parametrize("method", ["submit", "advance", "load_weights"])
def test_a_death_is_told_and_mended_with_the_same_groups(method, caplog):
    dying, whole = Worker("b"), Worker("b")
    service, untroubled = service_of(Worker("a"), dying), service_of(Worker("a"), whole)
    dying.dies_in = [method]
    with caplog.at_level(logging.WARNING):
        for each in (service, untroubled):
            each.load_weights("package", 1)
        left, right = take(service, version=1), take(untroubled, version=1)
    assert dying.num_restarts == 1
    assert "The process of b died. It is restarted" in caplog.text
    assert indices(left) == indices(right) == [0, 1, 2, 3]
    assert [g.trajectories[0].token_ids_T.tolist() for g in left.groups] == [
        g.trajectories[0].token_ids_T.tolist() for g in right.groups
    ]


def test_a_worker_that_dies_again_while_it_is_mended_is_mended_again():
    worker = Worker("a", dies_in=["advance"])
    service = service_of(worker)
    worker.dies_in += ["load_weights", "load_weights"]
    assert indices(take(service)) == [0, 1, 2, 3]
    assert worker.num_restarts == 3


def test_more_deaths_than_allowed_end_the_run_with_the_number():
    service = service_of(Worker("a", dies_in=["advance"] * 3), max_restarts=2)
    with pytest.raises(WorkerDied, match=r"death number 3 .* rollout.max_restarts is 2"):
        take(service)


@pytest.mark.parametrize("method", ["submit", "advance", "load_weights"])
def test_a_silent_worker_is_restarted_and_too_many_are_told_with_who_waited_for_whom(method, caplog):
    """Silent once: the run goes on with the same groups. Silent for ever: it ends with a sentence."""
    for is_silent_again in (False, True):
        silent = Worker("b")
        service = service_of(Worker("a"), silent, deadline_seconds=0.05, max_restarts=2)
        answer = silent.call

        def call(name, *arguments, answer=answer, silent=silent, is_silent_again=is_silent_again):
            is_silent = name == method and (is_silent_again or not silent.num_restarts)
            return Future() if is_silent else answer(name, *arguments)

        silent.call = call
        if is_silent_again:
            with pytest.raises(
                WorkerDied, match=rf"waited 0.05 s for b to answer '{method}'.*rollout.max_restarts is 2"
            ):
                service.load_weights("package", 1)
                take(service, version=1)
        else:
            service.load_weights("package", 1)
            assert indices(take(service, version=1)) == [0, 1, 2, 3]
            assert silent.num_restarts == 1


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_worker_may_take_longer_to_start_than_to_answer_but_not_for_ever(staleness, caplog):
    slow = Worker("b", dies_in=["advance"])
    service = service_of(slow, staleness=staleness, deadline_seconds=0.05)
    slow.started, late = (lambda: late), Future()
    threading.Timer(0.4, late.set_result, [0]).start()
    assert indices(take(service, staleness=staleness)) == [0, 1, 2, 3]
    assert slow.num_restarts == 1, "it was restarted while it started"
    stuck = Worker("c", dies_in=["advance"])
    service = service_of(stuck, staleness=staleness, deadline_seconds=0.05, start_seconds=0.2, max_restarts=1)
    stuck.started = Future
    with pytest.raises(WorkerDied, match=r"waited 0.2 s for c to answer 'started'.*raise cluster.start_seconds"):
        take(service, staleness=staleness)


def test_workers_that_answer_and_get_nowhere_are_a_deadline_that_says_who_has_what():
    stuck = Worker("b")
    service = service_of(Worker("a"), stuck, deadline_seconds=0.05)
    stuck.advance = lambda seconds: Finished()
    with pytest.raises(
        DeadlineExceeded, match=r"waited 0.05 s for rollouts and saw no progress; .*: b with 2 groups\."
    ):
        take(service)
    slow = Worker("c")
    service = service_of(slow, deadline_seconds=0.05)
    slow.advance = lambda seconds: Finished(num_unscored=3)
    with pytest.raises(DeadlineExceeded, match=r"c with 4 groups \(3 trajectories wait for their reward\)\. Look"):
        take(service)


def test_an_error_of_a_reward_ends_the_run_as_itself():
    worker = Worker("a")
    service = service_of(worker)

    def faulty(seconds):
        raise RewardError("line 3 raised")

    worker.advance = faulty
    with pytest.raises(RewardError, match="line 3 raised"):
        take(service)
    assert worker.num_restarts == 0


def prompts_for_evaluation():
    return [Prompt(name, "chain", "x", (i,), "y") for i, name in enumerate("uvw")]


def test_samples_come_in_order_with_seeds_that_depend_on_the_prompt_alone():
    one = service_of(Worker("a", pace=[1, 1, 1], last_first=True))
    two = service_of(Worker("a"), Worker("b", pace=[0, 1]))
    take(two)  # the training stream has moved on here
    left = one.sample(prompts_for_evaluation(), num_samples=3, greedy=False)
    right = two.sample(list(reversed(prompts_for_evaluation())), num_samples=3, greedy=False)
    assert [group.prompt.id for group in left] == ["u", "v", "w"]
    assert [len(group.trajectories) for group in left] == [3, 3, 3]
    tokens = {group.prompt.id: group.trajectories[0].token_ids_T.tolist() for group in left}
    assert tokens == {group.prompt.id: group.trajectories[0].token_ids_T.tolist() for group in right}


def test_sampling_leaves_the_training_stream_alone():
    service = service_of(Worker("a", pace=[1, 1]), staleness=1)
    take(service, 2, 0, 1)
    before = untaken(service)
    service.sample(prompts_for_evaluation(), num_samples=1, greedy=True)
    assert untaken(service) == before
    assert indices(take(service, 2, 1, 1)) == before[:2]


def test_a_prompt_that_cannot_be_sampled_is_left_out_and_told(caplog):
    with caplog.at_level(logging.WARNING):
        groups = service_of(Worker("a", failing={-2})).sample(prompts_for_evaluation(), num_samples=1, greedy=True)
    assert [group.prompt.id for group in groups] == ["u", "w"]
    assert "prompt v could not be evaluated: no luck" in caplog.text


def test_workers_that_were_made_with_a_policy_sample_without_a_publish():
    """As in an evaluation of its own: nobody publishes anything."""
    worker = Worker("a")
    worker.version = 7
    service = RolloutService([worker], Counter(), Draw(seed=1, group_size=2, max_new_tokens=8), RolloutConfig())
    groups = service.sample(prompts_for_evaluation(), num_samples=1, greedy=True)
    assert [group.prompt.id for group in groups] == ["u", "v", "w"]


def test_nothing_to_sample_is_nothing():
    assert service_of(Worker("a")).sample([], num_samples=1, greedy=True) == []


def test_the_length_window_follows_the_version_in_whole_tokens():
    worker, windows = Worker("a"), []
    submit = worker.submit
    worker.submit = lambda requests: (windows.extend(r.max_new_tokens for r in requests), submit(requests))[1]
    draw = Draw(seed=1, group_size=2, max_new_tokens=((0, 8), (4, 11)))
    service = RolloutService([worker], Counter(), draw, RolloutConfig())
    for version in (0, 2, 9):
        service.load_weights("package", version)
        take(service, num_groups=1, version=version)
    assert windows == [8, 9, 11]  # 9.5 is cut, and past the last knot the window stays
