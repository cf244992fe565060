"""What workers are offered of a version, who gets the whole of it instead, and that nobody gets a version by half."""

from concurrent.futures import Future

import pytest
import torch

from cispo.errors import NeedsWhole, WeightSyncError, WorkerDied
from rollout.changed_bytes import find_changes
from rollout.delivery import Delivery, Publication
from rollout.receiver import Receiver
from rollout.weight_memory import TensorForm, WeightMemory
from rollout.weight_package import Manifest, WeightPackage, fill
from rollout.worker_pool import RolloutConfig, WorkerPool


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


class Learner:
    """Publishes changes, as launch/publisher.py does with sync.transport=changed_bytes."""

    def __init__(self):
        self.weights = {"w": torch.zeros(100)}
        self.memory = WeightMemory({name: TensorForm.of(weight) for name, weight in self.weights.items()})
        self.num_whole = 0

    def whole(self):
        self.num_whole += 1
        return WeightPackage(Manifest(self.memory.version, self.records), self.memory.arrays, is_base=True)

    def publish(self, pool, version):
        self.weights["w"][version] = float(version)
        if self.memory.version is None:
            self.records = fill(self.memory, self.weights.items(), version)
            package = self.whole()
        else:
            package = find_changes(self.memory, self.records, self.weights.items(), version, 4)
            self.records = package.manifest.records
        return pool.load_weights(Publication(package, self.whole), version)


def holds(worker, learner):
    return torch.equal(worker.engine.weights["w"], learner.weights["w"])


def test_a_worker_that_died_at_any_load_catches_up():
    for dies_at in ((1,), (2,), (3,), (2, 3), (4,)):
        workers, learner = [Worker("a"), Worker("b", dies_at)], Learner()
        pool = WorkerPool(workers, RolloutConfig())
        for version in (1, 2, 3, 4):
            said = learner.publish(pool, version)
            assert {loaded.version for loaded in said} == {version} and len(said) == 2
            assert all(holds(worker, learner) for worker in workers)
        assert workers[0].loads == [("WeightPackage", 1), ("Changes", 2), ("Changes", 3), ("Changes", 4)]


def test_a_worker_that_missed_versions_skips_them():
    workers, learner = [Worker("a"), Worker("b")], Learner()
    pools = [WorkerPool(workers, RolloutConfig()), WorkerPool(workers[:1], RolloutConfig())]
    for version, pool in ((1, pools[0]), (2, pools[1]), (3, pools[1]), (4, pools[0])):
        learner.publish(pool, version)
    assert workers[1].loads == [("WeightPackage", 1), ("Changes", 4), ("WeightPackage", 4)]
    assert all(holds(worker, learner) for worker in workers)


def test_the_whole_version_is_made_once_for_all_who_ask():
    workers, learner = [Worker(name) for name in "abc"], Learner()
    pool = WorkerPool(workers, RolloutConfig())
    learner.publish(pool, 1)
    for worker in workers:
        worker.restart()
    learner.num_whole = 0
    learner.publish(pool, 2)
    assert learner.num_whole == 1 and all(holds(worker, learner) for worker in workers)


def test_a_version_that_was_published_by_half_is_never_handed_out():
    """The stream breaks off, so there is no publication, and a worker that is restarted gets the version before."""
    worker, learner = Worker("a", dies_at=(2,)), Learner()
    pool = WorkerPool([worker], RolloutConfig())
    learner.publish(pool, 1)
    complete = learner.weights["w"].clone()
    whole = learner.whole()
    whole = WeightPackage(whole.manifest, {name: array.copy() for name, array in whole.arrays.items()}, is_base=True)
    pool.load_weights(whole, 1)  # dies, and is given the same again

    def breaks_off():
        yield "w", learner.weights["w"] + 1.0
        raise WorkerDied("The process of learner-1 died (the test).")

    with pytest.raises(WorkerDied, match="learner-1"):
        find_changes(learner.memory, learner.records, breaks_off(), 2, 4)
    pool._recover(worker, WorkerDied("The process of a died again."))
    assert torch.equal(worker.engine.weights["w"], complete)


def test_a_worker_that_cannot_take_the_whole_either_is_an_error():
    class Stubborn(Worker):
        def load_weights(self, package, version):
            raise NeedsWhole("it wants more")

    with pytest.raises(NeedsWhole, match="it wants more"):
        Delivery(Stubborn("a"), Publication("part", lambda: "whole"), 1).result(1)


def test_damage_is_not_answered_with_another_try():
    worker, learner = Worker("a"), Learner()
    pool = WorkerPool([worker], RolloutConfig())
    learner.publish(pool, 1)
    learner.memory.arrays["w"][3] = 7.0  # after the checksums were taken
    with pytest.raises(WeightSyncError, match="did not arrive as they were sent"):
        pool.load_weights(learner.whole(), 1)
