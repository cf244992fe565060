"""A version from one sender to all workers at once, by torch.distributed, in buckets of bounded size.

Sender and workers meet at the sender's TCPStore. The group that they form is their own, beside any other of the
process, and is kept as long as the same workers come to every broadcast; a worker that was restarted has it formed
anew. Every wait has a deadline, and whoever gives up says who did not come or at which bucket it was. A worker that
came too late, or lost the others under way, asks for the whole version instead (NeedsWhole): nobody hangs, and half a
version is never loaded, because it is received beside the weights in use and checked before it replaces them.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cispo.errors import NeedsWhole
from rollout.checksum import Bytes
from rollout.weight_memory import WeightMemory
from rollout.weight_package import Manifest, WeightPackage, check_arrays

log = logging.getLogger(__name__)

POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Invitation:
    """To the broadcast of one version.

    Attributes:
        manifest: what the version must be.
        address: "host:port" of the sender's store.
        bucket_bytes: sent at a time.
        deadline_seconds: for the others to come, and for each bucket.
    """

    manifest: Manifest
    address: str
    bucket_bytes: int
    deadline_seconds: float

    @property
    def num_bytes(self) -> int:
        """That travel."""
        return self.manifest.num_bytes


@dataclass(frozen=True)
class _Group:
    """Processes that are connected.

    Attributes:
        key: the same for all of them, and never used again.
        members: worker names by rank - 1; the sender has rank 0.
        processes: torch's group.
    """

    key: str
    members: tuple[str, ...]
    processes: Any

    @classmethod
    def form(cls, store: Any, key: str, members: tuple[str, ...], rank: int, deadline_seconds: float) -> _Group:
        """Connect to the others, who do the same. Raises torch's RuntimeError after the deadline."""
        processes = dist.ProcessGroupGloo(
            dist.PrefixStore(f"group/{key}", store),
            rank,
            len(members) + 1,
            datetime.timedelta(seconds=deadline_seconds),
        )
        return cls(key, members, processes)

    def broadcast(self, block: Bytes, bucket_bytes: int) -> Iterator[int]:
        """Send (rank 0) or receive `block`; yields the number of each bucket before it goes."""
        whole = torch.from_numpy(block)
        for number, begin in enumerate(range(0, len(block), bucket_bytes)):
            yield number
            bucket: Tensor = whole[begin : begin + bucket_bytes]
            self.processes.broadcast(bucket, 0).wait()


class Sender:
    """The learner's end.

    Args:
        host: by which workers reach this process.
        bucket_bytes, deadline_seconds: see Invitation.
    """

    def __init__(self, host: str, bucket_bytes: int, deadline_seconds: float) -> None:
        self._store = dist.TCPStore(
            "0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=deadline_seconds)
        )
        self._address = f"{host}:{self._store.port}"
        self._bucket_bytes, self._deadline_seconds = bucket_bytes, deadline_seconds
        self._group: _Group | None = None
        self._num_groups = 0
        self._keys: list[list[str]] = []  # of the last versions, in the store

    def invitation(self, manifest: Manifest) -> Invitation:
        """What the workers are given."""
        return Invitation(manifest, self._address, self._bucket_bytes, self._deadline_seconds)

    def send(self, memory: WeightMemory, num_workers: int) -> str:
        """Wait for the workers and send what is in `memory`; "", or why the broadcast was given up."""
        version = memory.version
        begin = time.monotonic()
        self._forget_old()
        what = "waited for workers"
        try:
            coming = self._wait_for(num_workers, f"{version}/")
            if len(coming) < num_workers:
                came = ", ".join(sorted(coming)) or "nobody"
                return self._give_up(
                    version,
                    f"learner-0 waited {self._deadline_seconds:g} s for {num_workers} workers to come to the broadcast "
                    f"of version {version}, and of them came {came}",
                )
            what = f"connected to {', '.join(sorted(coming))}"
            group = self._group_with(coming, f"{version}/")
            num_buckets = -(-len(memory.block) // self._bucket_bytes)
            for number in group.broadcast(memory.block, self._bucket_bytes):
                what = f"was at bucket {number + 1} of {num_buckets} for {', '.join(group.members)}"
        except RuntimeError as error:
            return self._give_up(
                version,
                f"learner-0 gave up the broadcast of version {version} after {time.monotonic() - begin:.0f} s, when it "
                f"{what} ({_short(error)})",
            )
        self._store.set(f"{version}/over", "done")
        return ""

    def _forget_old(self) -> None:
        """The keys of the version before the last, which nobody waits for any more: a run has thousands of versions."""
        self._keys.append([])
        while len(self._keys) > 2:
            for key in self._keys.pop(0):
                self._store.delete_key(key)

    def close(self) -> None:
        """Leave the group."""
        self._group = None

    def _wait_for(self, num_workers: int, place: str) -> dict[str, dict[str, str]]:
        """Who came, by name: the last of each name, for an earlier one was restarted since."""
        end = time.monotonic() + self._deadline_seconds
        self._keys[-1] += [f"{place}came", f"{place}plan", f"{place}over"]
        coming: dict[str, dict[str, str]] = {}
        num_seen = 0
        while len(coming) < num_workers and time.monotonic() < end:
            if self._store.add(f"{place}came", 0) == num_seen:
                time.sleep(POLL_SECONDS)
                continue
            num_seen += 1
            key = f"{place}worker/{num_seen}"
            told = json.loads(self._store.get(key))
            self._keys[-1].append(key)
            coming[told["name"]] = told | {"number": str(num_seen)}
        return coming

    def _group_with(self, coming: dict[str, dict[str, str]], place: str) -> _Group:
        """The group that all of them are in already, or a new one."""
        old, members = self._group, tuple(sorted(coming))
        keeps = old is not None and old.members == members and {t["group"] for t in coming.values()} == {old.key}
        if not keeps:
            self._num_groups += 1
        key = str(self._num_groups)
        numbers = [coming[name]["number"] for name in members]
        self._store.set(f"{place}plan", json.dumps({"group": key, "members": members, "numbers": numbers}))
        if old is None or not keeps:
            self._group = old = None
            self._group = old = _Group.form(self._store, key, members, 0, self._deadline_seconds)
        return old

    def _give_up(self, version: int | None, reason: str) -> str:
        """Close the connections, so that whoever waits on them is told, and turn those away who come later."""
        self._group = None
        self._store.set(f"{version}/over", "given up")
        self._store.set(f"{version}/plan", "null")
        return reason


class Listener:
    """A worker's end; `name` is how messages call it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stores: dict[str, Any] = {}
        self._group: _Group | None = None

    def receive(self, invitation: Invitation, memory: WeightMemory) -> WeightPackage:
        """The version, in `memory`.

        Raises NeedsWhole if it cannot be had this way, and WeightSyncError if it is not what it should be.
        """
        manifest, memory.version = invitation.manifest, None
        begin, what = time.monotonic(), "met learner-0"
        try:
            group = self._join(invitation)
            num_buckets = -(-len(memory.block) // invitation.bucket_bytes)
            for number in group.broadcast(memory.block, invitation.bucket_bytes):
                what = f"waited for bucket {number + 1} of {num_buckets} from learner-0"
        except (RuntimeError, ConnectionError) as error:
            self._group, self._stores = None, {}  # the connection to the store may be what broke: the next is a new one
            raise NeedsWhole(
                f"{self._name} lost the broadcast of version {manifest.version} after "
                f"{time.monotonic() - begin:.0f} s, when it {what} ({_short(error)})"
            ) from error
        check_arrays(manifest, memory.arrays)
        memory.version = manifest.version
        return WeightPackage(manifest, memory.arrays)

    def close(self) -> None:
        """Leave the group."""
        self._group = None

    def _join(self, invitation: Invitation) -> _Group:
        """The group of this broadcast, formed if it is another than the last."""
        place, deadline = f"{invitation.manifest.version}/", invitation.deadline_seconds
        store = self._store_at(invitation.address, deadline)
        if store.check([f"{place}over"]):
            raise NeedsWhole(f"{self._name} came after the broadcast of version {place[:-1]} was over")
        number = store.add(f"{place}came", 1)
        told = {"name": self._name, "group": self._group.key if self._group else ""}
        store.set(f"{place}worker/{number}", json.dumps(told))
        plan = json.loads(store.get(f"{place}plan"))
        if plan is None:
            raise NeedsWhole(f"the broadcast of version {place[:-1]} was given up while {self._name} waited for others")
        if str(number) not in plan["numbers"]:
            raise NeedsWhole(f"{self._name} came after the broadcast of version {place[:-1]} had begun")
        if self._group is None or self._group.key != plan["group"]:
            self._group = None  # connections of an old group close before those of a new one open
            rank = 1 + plan["numbers"].index(str(number))
            self._group = _Group.form(store, plan["group"], tuple(plan["members"]), rank, deadline)
        return self._group

    def _store_at(self, address: str, deadline_seconds: float) -> Any:
        if address not in self._stores:
            host, _, port = address.rpartition(":")
            timeout = datetime.timedelta(seconds=deadline_seconds + 5)  # the sender gives up first, and says why
            self._stores = {address: dist.TCPStore(host, int(port), is_master=False, timeout=timeout)}
        return self._stores[address]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
