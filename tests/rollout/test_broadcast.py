"""One sender, some workers, each in a thread with a connection of its own: all get the version, or say why not."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cispo.errors import NeedsWhole, WeightSyncError
from rollout.broadcast import Listener, Sender
from rollout.weight_memory import TensorForm, WeightMemory
from rollout.weight_package import Manifest, fill

FORMS = {"a": TensorForm((300, 7), "float32"), "b": TensorForm((11,), "bfloat16"), "c": TensorForm((5000,), "float32")}
BUCKET = 4096  # several of them, which cut through tensors


def weights_of(version):
    rng = torch.Generator().manual_seed(version)
    return {name: torch.randn(form.shape, generator=rng).to(getattr(torch, form.dtype)) for name, form in FORMS.items()}


class Learner:
    """Sends versions."""

    def __init__(self, deadline):
        self.memory = WeightMemory(FORMS)
        self.sender = Sender("127.0.0.1", BUCKET, deadline)

    def invitation(self, version):
        records = fill(self.memory, weights_of(version).items(), version)
        return self.sender.invitation(Manifest(version, records))


def receive(listener, invitation, memory=None):
    return listener.receive(invitation, memory or WeightMemory(FORMS))


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def learner():
    return Learner(deadline=20)


def broadcast(learner, threads, listeners, version):
    invitation = learner.invitation(version)
    sending = threads.submit(learner.sender.send, learner.memory, len(listeners))
    receiving = [threads.submit(receive, listener, invitation) for listener in listeners]
    return sending.result(60), [future.result(60) for future in receiving]


def assert_is(package, version):
    for name, tensor in package.tensors():
        assert torch.equal(tensor, weights_of(version)[name])


def test_all_workers_get_version_after_version_over_the_same_connections(learner, threads):
    listeners = [Listener("rollout-0"), Listener("rollout-1")]
    groups = []
    for version in (0, 1, 5):
        reason, packages = broadcast(learner, threads, listeners, version)
        assert reason == ""
        for package in packages:
            assert_is(package, version)
        groups.append([listener._group for listener in listeners])
    assert groups[0] == groups[1] == groups[2]


def test_a_restarted_worker_has_the_group_formed_anew(learner, threads):
    old = Listener("rollout-1")
    broadcast(learner, threads, [Listener("rollout-0"), old], 0)
    stays = Listener("rollout-0")
    broadcast(learner, threads, [stays, old], 1)
    key = stays._group.key
    reason, packages = broadcast(learner, threads, [stays, Listener("rollout-1")], 2)
    assert reason == "" and stays._group.key != key
    for package in packages:
        assert_is(package, 2)


def test_a_broken_connection_to_the_store_costs_one_broadcast_and_not_all_that_follow(threads):
    learner, listener = Learner(deadline=2), Listener("rollout-0")
    gone = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    broken = dist.TCPStore("127.0.0.1", gone.port, is_master=False, timeout=timedelta(seconds=2))
    del gone
    listener._stores = {learner.invitation(0).address: broken}
    with pytest.raises(NeedsWhole, match="lost the broadcast of version 0"):
        receive(listener, learner.invitation(0))
    reason, packages = broadcast(learner, threads, [listener], 1)
    assert reason == ""
    assert_is(packages[0], 1)


def test_a_damaged_bucket_is_refused(learner, threads):
    invitation = learner.invitation(0)
    learner.memory.block[BUCKET + 5] ^= 1  # after the checksums were taken
    sending = threads.submit(learner.sender.send, learner.memory, 1)
    with pytest.raises(WeightSyncError, match=r"version 0 did not arrive as they were sent \(checksum.*: a\)"):
        receive(Listener("rollout-0"), invitation)
    assert sending.result(60) == ""


def test_who_comes_too_late_is_sent_away(learner, threads):
    broadcast(learner, threads, [Listener("rollout-0")], 0)
    with pytest.raises(NeedsWhole, match="^rollout-1 came after the broadcast of version 0 was over"):
        receive(Listener("rollout-1"), learner.sender.invitation(Manifest(0, {})))


def test_a_worker_that_does_not_come_costs_the_deadline_and_is_named(threads):
    learner = Learner(deadline=1)
    invitation = learner.invitation(0)
    begin = time.monotonic()
    sending = threads.submit(learner.sender.send, learner.memory, 2)
    with pytest.raises(NeedsWhole, match="broadcast of version 0 was given up while rollout-0 waited for others"):
        receive(Listener("rollout-0"), invitation)
    assert time.monotonic() - begin < 15
    assert sending.result(60) == (
        "learner-0 waited 1 s for 2 workers to come to the broadcast of version 0, and of them came rollout-0"
    )


class Silent(Listener):
    """Joins and then neither receives nor hangs up."""

    def receive(self, invitation, memory):
        self._join(invitation)


def test_a_worker_that_stops_on_the_way_costs_the_deadline_and_the_sentence_says_where(threads):
    memory = WeightMemory({"w": TensorForm((12 << 20,), "float32")})  # more than connections hold by themselves
    records = fill(memory, [("w", torch.ones(12 << 20))], 0)
    sender = Sender("127.0.0.1", 1 << 20, 2)
    invitation = sender.invitation(Manifest(0, records))
    silent, waiting = Silent("rollout-1"), Listener("rollout-0")
    stuck = threads.submit(receive, silent, invitation, memory)
    received = threads.submit(receive, waiting, invitation, WeightMemory(memory.forms))
    reason = sender.send(memory, 2)
    stuck.result(60)
    assert re.match(
        r"learner-0 gave up the broadcast of version 0 after \d+ s, when it was at bucket \d+ of 48 for rollout-0, "
        r"rollout-1 \(.*\)$",
        reason,
    )
    with pytest.raises(
        NeedsWhole, match=r"^rollout-0 lost the broadcast of version 0 .* bucket \d+ of 48 from learner"
    ):
        received.result(60)
    assert memory.version == 0, "the learner still has the whole version to send"


def test_the_last_of_a_name_counts(learner, threads):
    """A worker that was killed while it waited for the others and is back under its name."""
    invitation = learner.invitation(0)
    sending = threads.submit(learner.sender.send, learner.memory, 2)
    dead = Listener("rollout-1")
    store = dead._store_at(invitation.address, 20)
    number = store.add("0/came", 1)
    store.set(f"0/worker/{number}", '{"name": "rollout-1", "group": ""}')
    receiving = [threads.submit(receive, Listener("rollout-1"), invitation)]
    while store.add("0/came", 0) < 2:
        time.sleep(0.01)
    receiving.append(threads.submit(receive, Listener("rollout-0"), invitation))
    for future in receiving:
        assert_is(future.result(60), 0)
    assert sending.result(60) == ""


def test_memory_between_tensors_is_sent_too_and_stays_zero(learner, threads):
    invitation = learner.invitation(0)
    memory = WeightMemory(FORMS)
    sending = threads.submit(learner.sender.send, learner.memory, 1)
    receive(Listener("rollout-0"), invitation, memory)
    sending.result(60)
    assert np.array_equal(memory.block, learner.memory.block) and threading.active_count() < 30


def test_what_was_told_of_old_versions_is_forgotten(learner, threads):
    listeners = [Listener("rollout-0"), Listener("rollout-1")]
    sizes = []
    for version in range(6):
        reason, packages = broadcast(learner, threads, listeners, version)
        assert reason == ""
        for package in packages:
            assert_is(package, version)
        sizes.append(learner.sender._store.num_keys())
    assert sizes[5] == sizes[2], f"the store grows with every version: {sizes}"
