"""Answers that come at a bad moment: what was finished counts, nobody waits for ever, and every group keeps its age."""

import threading
import time
from concurrent.futures import Future

import pytest

from cispo.errors import NeedsWhole, WeightSyncError, WorkerDied
from rollout.delivery import Publication
from rollout.ledger import Entry
from rollout.requests import Begun, Finished, GroupRequest
from rollout.service import Draw, RolloutService, first_answer
from rollout.station import Weights
from rollout.worker_pool import RolloutConfig
from tests.rollout.test_service import Counter, Worker, differs, indices, prompts_for_evaluation


class Held(Worker):
    """A worker whose calls to the methods in `hold` stay open until they are released."""

    def __init__(self, name, hold=(), **settings):
        super().__init__(name, **settings)
        self.hold, self.open = set(hold), []

    def call(self, method, *arguments):
        if method not in self.hold:
            return super().call(method, *arguments)
        self.open.append((method, arguments, Future()))
        return self.open[-1][2]

    def release(self, method=None, error=None):
        for item in [item for item in self.open if method in (None, item[0])]:
            self.open.remove(item)
            name, arguments, future = item
            if error:
                future.set_exception(error)
            else:
                future.set_result(getattr(self, name)(*arguments))

    def cancel(self, indices):
        self.queue = [request for request in self.queue if request.index not in indices]


def make(*workers, staleness=1, start_seconds=60.0, **config):
    """A service that makes turns of 20 ms; `in_background` gives it a thread."""
    in_background = config.pop("in_background", False)
    draw = Draw(seed=1, group_size=2, max_new_tokens=8, max_staleness=staleness)
    config = RolloutConfig(**{"in_flight": 99} | config)
    return RolloutService(workers, Counter(), draw, config, start_seconds=start_seconds, in_background=in_background,
                          wait_for=lambda answers, seconds: first_answer(answers, 0.02))  # fmt: skip


def take(service, num_groups, version, staleness=1):
    return service.take(num_groups, oldest_version=version - staleness, keep=differs)


def within(seconds, act):
    """What `act` returns; AssertionError if it takes longer."""
    results = []
    thread = threading.Thread(target=lambda: results.append(act()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"not done within {seconds} s"
    return results[0]


def test_what_a_worker_finished_before_it_died_counts():
    a, b = Held("a"), Held("b")
    service = make(a, b, deadline_seconds=0.3)
    service.load_weights("p", 0)
    a.hold = {"advance", "load_weights"}
    take(service, 2, 0)
    station = service.pool.stations[0]
    assert station.assigned
    service.pool.publish(Weights(Publication("p"), 1))
    service._order()
    a.release("advance")
    a.release("load_weights", WorkerDied("The process of a died."))
    a.hold = set()
    for _ in range(4):
        service.turn()
    held = {index for each in service.pool.stations for index in each.assigned}
    assert set(service._ledger._under_way) == held, "a group is under way and no worker has it"
    for version in (1, 2):
        service.load_weights("p", version)
        assert len(within(4, lambda version=version: take(service, 2, version)).groups) == 2


def test_an_evaluation_does_not_wait_for_a_worker_that_cannot_start():
    service = make(Held("a"), deadline_seconds=0.2, start_seconds=0.2)
    service.load_weights("p", 0)
    take(service, 2, 0)
    service.pool.add(Held("b", hold={"start"}))
    groups = within(4, lambda: service.sample(prompts_for_evaluation(), num_samples=1, greedy=True))
    assert len(groups) == len(prompts_for_evaluation())


class TakesChanges(Held):
    """Refuses changes to a version that it does not have."""

    def load_weights(self, package, version):
        if package == "changes" and self.version != version - 1:
            raise NeedsWhole(f"version {version} came as changes and this worker holds {self.version}")
        self.version = version


def test_a_worker_that_needs_a_version_which_the_learner_has_left_waits_for_the_next(caplog):
    a, b = TakesChanges("a"), TakesChanges("b")
    service = make(a, b)

    def gone():
        future = Future()
        future.set_exception(WeightSyncError("the learner keeps version 2"))
        return future

    service.load_weights("p", 0)
    service.load_weights(Publication("changes", gone), 1)
    take(service, 2, 1)
    a.restart()  # between two publishes, as the learner packs the next
    service.pool._recover(service.pool.stations[0], WorkerDied("The process of a died."))
    for _ in range(4):
        service.turn()
    assert "a has no weights until the next version" in caplog.text and a.version is None
    service.load_weights("p", 2)
    assert a.version == b.version == 2
    assert len(take(service, 2, 2).groups) == 2


def test_a_worker_that_needs_the_whole_is_not_waited_for_in_a_broadcast():
    """It would not come, and the others would have the whole sent when the deadline is over."""
    service = make(TakesChanges("a"), TakesChanges("b"))
    service.load_weights("p", 0)
    assert service.num_receivers == 2
    service.pool.stations[0].needs_whole = True
    assert service.num_receivers == 1


def test_nobody_else_waits_for_a_whole_version_that_takes_long():
    a, b = TakesChanges("a"), TakesChanges("b")
    service = make(a, b, in_background=True)
    made = Future()
    service.load_weights("p", 0)
    take(service, 2, 0)
    b.restart()
    service.pool.stations[1].version = None
    loading = threading.Thread(target=service.load_weights, args=(Publication("changes", lambda: made), 1), daemon=True)
    loading.start()
    end = time.monotonic() + 4
    while a.version != 1 and time.monotonic() < end:
        time.sleep(0.01)
    within(1, service.metrics)
    assert a.version == 1 and b.version is None
    made.set_result("whole")
    loading.join(4)
    assert b.version == 1
    service.close()


def finished(entry, version):
    worker = Worker("x")
    worker.version = version
    return Entry(
        entry.index, entry.prompt, version, group=worker.group(GroupRequest(entry.index, entry.prompt, 2, 7, 8))
    )


def test_after_a_resume_the_half_sampled_come_before_younger_ones_that_are_ready():
    """Version 3 was sampled in part, 4 is finished."""
    worker = Worker("a")
    service = make(worker, staleness=1)
    entries = [Entry(i, service._ledger.prompts.next(), 3, Begun({}, None)) for i in (0, 1)]
    entries += [finished(Entry(i, service._ledger.prompts.next()), 4) for i in (2, 3)]
    service._ledger.restore(4, entries)
    group = worker.group

    def begun_earlier(request):
        made = group(request)
        for trajectory in made.trajectories if request.index in (0, 1) else ():
            trajectory.version_T[1] = 3
        return made

    worker.group = begun_earlier
    service.load_weights("p", 4)
    first = within(4, lambda: take(service, 2, 4))
    service.load_weights("p", 5)
    second = within(4, lambda: take(service, 2, 5))
    assert indices(first) == [0, 1] and indices(second) == [2, 3]
    assert not {"stale"} & {*first.dropped, *second.dropped}


def test_a_group_has_the_version_of_the_worker_that_begins_it():
    a, b = Held("a"), Held("b")
    service = make(a, b, in_flight=2)
    service.load_weights("p", 0)
    a.hold = {"advance"}
    take(service, 4, 0)
    a.hold, b.hold = {"load_weights", "advance"}, {"advance"}
    service.pool.publish(Weights(Publication("p"), 1))
    service._order()
    a.release("advance")
    service.turn()
    service.turn()
    new = [service._ledger._under_way[index] for index in service.pool.stations[0].assigned]
    assert new and {entry.version for entry in new} == {0}, "it is sampled with version 0"


def test_a_worker_whose_groups_were_all_dropped_gets_others():
    a, b = Held("a"), Held("b")
    service = make(a, b, in_flight=2, overdue="drop")
    service.load_weights("p", 0)
    a.advance = lambda seconds: Finished(num_steps=1, num_left=2 * len(a.queue))
    a.hold = {"advance", "cancel"}
    for version in range(6):
        if version:
            service.load_weights("p", version)
        take(service, 1, version)
        a.release("advance")
        a.release("cancel")
        for _ in range(3):
            service.turn()
    assert service.pool.stations[0].assigned, "it has had nothing to do since its groups were dropped"


def test_time_without_work_is_no_lack_of_progress():
    slow = Held("a", hold={"advance"})
    service = make(slow, staleness=0, deadline_seconds=0.3)
    service.load_weights("p", 0)
    service.turn()
    time.sleep(0.5)  # a checkpoint of the learner, say
    threading.Timer(0.1, lambda: (slow.hold.clear(), slow.release())).start()
    assert len(take(service, 2, 0, staleness=0).groups) == 2


def test_groups_of_a_worker_that_cannot_start_go_to_those_that_can(caplog):
    """Both had died, so each kept its own: those of the one that never came back were waited for without an end."""
    a, b = Worker("a"), Held("b")
    service = make(a, b, deadline_seconds=0.2, start_seconds=0.2)
    service.load_weights("p", 0)
    b.hold = {"advance"}
    take(service, 2, 0)
    first, second = service.pool.stations
    for station in (second, first):  # nobody is up when the second one dies
        first.is_up = second.is_up = False
        service.pool._recover(station, WorkerDied(f"The process of {station.name} died."))
    assert second.assigned
    b.started = Future
    for version in (1, 2, 3):
        within(4, lambda version=version: service.load_weights("p", version))
        assert len(within(4, lambda version=version: take(service, 2, version)).groups) == 2
    assert not second.assigned and "b does not start; the" in caplog.text


def test_restarts_are_forgiven_when_the_run_gets_on():
    a, b = Worker("a"), Worker("b")
    service = make(a, b, max_restarts=1)
    for version in range(4):
        service.load_weights("p", version)
        take(service, 2, version)
        for station in service.pool.stations:
            service.pool._recover(station, WorkerDied("The process died."))
    assert service.pool.num_restarts == 8
    with pytest.raises(WorkerDied, match="death number 2 of this worker under the same weights"):
        service.pool._recover(service.pool.stations[0], WorkerDied("The process died."))
