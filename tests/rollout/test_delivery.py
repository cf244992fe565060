"""What workers are offered of a version, who gets the whole of it instead, and that nobody gets a version by half."""

from concurrent.futures import Future

import pytest
import torch

from cispo.errors import NeedsWhole, WeightSyncError, WorkerDied
from rollout.changed_bytes import find_changes
from rollout.delivery import Publication
from rollout.receiver import Receiver
from rollout.service import Draw, RolloutService
from rollout.weight_memory import TensorForm, WeightMemory
from rollout.weight_package import Manifest, WeightPackage, fill
from rollout.worker_pool import RolloutConfig


class Engine:
    """Keeps what it is given."""

    def load_weights(self, weights, version):
        self.weights = {name: tensor.clone() for name, tensor in weights}


class Worker:
    """A worker with a real receiver; dies at the loads whose numbers are in `dies_at`."""

    def __init__(self, name, dies_at=()):
        self.name, self.dies_at, self.loads = name, dies_at, []
        self.restart()

    def restart(self):
        self.engine = Engine()
        self.receiver = Receiver(self.engine, self.name)

    def started(self):
        return self.call("start")

    def start(self):
        return 0

    def beside(self, method, *arguments):
        return self.call(method, *arguments)

    def call(self, method, *arguments):
        future = Future()
        try:
            future.set_result(getattr(self, method)(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def load_weights(self, package, version):
        self.loads.append((type(package).__name__, version))
        if len(self.loads) in self.dies_at:
            raise WorkerDied(f"The process of {self.name} died (the test).")
        return self.receiver.load(package, version)


def done(result):
    future = Future()
    future.set_result(result)
    return future


class Learner:
    """Publishes changes, as launch/publisher.py does with sync.transport=changed_bytes."""

    def __init__(self):
        self.weights = {"w": torch.zeros(100)}
        self.memory = WeightMemory({name: TensorForm.of(weight) for name, weight in self.weights.items()})
        self.num_whole = 0

    def whole(self):
        self.num_whole += 1
        return WeightPackage(Manifest(self.memory.version, self.records), self.memory.arrays, is_base=True)

    def publish(self, service, version):
        self.weights["w"][version] = float(version)
        if self.memory.version is None:
            self.records = fill(self.memory, self.weights.items(), version)
            package = self.whole()
        else:
            package = find_changes(self.memory, self.records, self.weights.items(), version, 4)
            self.records = package.manifest.records
        return service.load_weights(Publication(package, lambda: done(self.whole())), version)


def service_of(*workers):
    return RolloutService(workers, None, Draw(seed=1, group_size=2, max_new_tokens=8), RolloutConfig())


def holds(worker, learner):
    return torch.equal(worker.engine.weights["w"], learner.weights["w"])


def test_a_worker_that_died_at_any_load_catches_up():
    for dies_at in ((1,), (2,), (3,), (2, 3), (4,)):
        workers, learner = [Worker("a"), Worker("b", dies_at)], Learner()
        service = service_of(*workers)
        for version in (1, 2, 3, 4):
            said = learner.publish(service, version)
            assert {loaded.version for loaded in said} == {version} and len(said) == 2
            assert all(holds(worker, learner) for worker in workers)
        assert workers[0].loads == [("WeightPackage", 1), ("Changes", 2), ("Changes", 3), ("Changes", 4)]


def test_a_worker_that_missed_versions_skips_them():
    workers, learner = [Worker("a"), Worker("b")], Learner()
    services = [service_of(*workers), service_of(workers[0])]
    for version, service in ((1, services[0]), (2, services[1]), (3, services[1]), (4, services[0])):
        learner.publish(service, version)
    assert workers[1].loads == [("WeightPackage", 1), ("Changes", 4), ("WeightPackage", 4)]
    assert all(holds(worker, learner) for worker in workers)


def test_the_whole_version_is_made_once_for_all_who_ask():
    workers, learner = [Worker(name) for name in "abc"], Learner()
    service = service_of(*workers)
    learner.publish(service, 1)
    for worker in workers:
        worker.restart()
    learner.num_whole = 0
    learner.publish(service, 2)
    assert learner.num_whole == 1 and all(holds(worker, learner) for worker in workers)


def test_a_version_that_was_published_by_half_is_never_handed_out():
    """The stream breaks off, so there is no publication, and a worker that is restarted gets the version before."""
    worker, learner = Worker("a"), Learner()
    learner.publish(service_of(Worker("b")), 1)
    complete = learner.weights["w"].clone()
    whole = learner.whole()
    whole = WeightPackage(whole.manifest, {name: array.copy() for name, array in whole.arrays.items()}, is_base=True)
    service = service_of(worker)
    service.load_weights(whole, 1)

    def breaks_off():
        yield "w", learner.weights["w"] + 1.0
        raise WorkerDied("The process of learner-1 died (the test).")

    with pytest.raises(WorkerDied, match="learner-1"):
        find_changes(learner.memory, learner.records, breaks_off(), 2, 4)
    service.pool._recover(service.pool.stations[0], WorkerDied("The process of a died."))
    service.load_weights(whole, 1)
    assert worker.loads == [("WeightPackage", 1), ("WeightPackage", 1)]
    assert torch.equal(worker.engine.weights["w"], complete)


def test_a_worker_that_cannot_take_the_whole_either_is_an_error():
    class Stubborn(Worker):
        def load_weights(self, package, version):
            raise NeedsWhole("it wants more")

    with pytest.raises(NeedsWhole, match="it wants more"):
        service_of(Stubborn("a")).load_weights(Publication("part", lambda: done("whole")), 1)


def test_damage_is_not_answered_with_another_try():
    learner = Learner()
    learner.publish(service_of(Worker("a")), 1)
    learner.memory.arrays["w"][3] = 7.0  # after the checksums were taken
    with pytest.raises(WeightSyncError, match="did not arrive as they were sent"):
        service_of(Worker("b")).load_weights(learner.whole(), 1)
