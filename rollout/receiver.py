"""A worker's side of a publish: from a package, in whichever form it comes, to an engine that samples with it.

Nothing in the engine is touched before every tensor of the version is known to be what it should be; afterwards learner
and engine must agree on the canary.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from cispo.errors import WeightSyncError
from rollout.broadcast import Invitation, Listener
from rollout.canary import check_canary
from rollout.changed_bytes import Changes, apply_changes
from rollout.checksum import copy_with_checksum
from rollout.engine_protocol import ComputesLogp, Engine
from rollout.weight_memory import WeightMemory
from rollout.weight_package import Manifest, TensorRecord, WeightPackage, check_arrays, check_found, record_of

Package = WeightPackage | Changes | Invitation
"""A version in one of its forms: its bytes, what makes it of the one before, or when and where it is broadcast."""


@dataclass(frozen=True)
class Loaded:
    """What a worker says of a version that it samples with now.

    Attributes:
        num_bytes: that it was sent.
        seconds: from the call to the check of the canary.
        canary_difference: in nats; None if there was no canary, or the engine cannot say.
    """

    version: int
    num_bytes: int
    seconds: float
    canary_difference: float | None


class Receiver:
    """Takes versions for one engine.

    Args:
        engine: samples with them.
        name: of the worker, for messages.
        between_steps: entered while the engine is touched, so that no step is under way.
    """

    def __init__(self, engine: Engine, name: str, between_steps: AbstractContextManager[None] | None = None) -> None:
        self._engine = engine
        self._between_steps = between_steps or nullcontext()
        self._memory: WeightMemory | None = None
        self._listener = Listener(name)

    def load(self, package: Package, version: int) -> Loaded:
        """Let the engine sample with `version`.

        Raises:
            WeightSyncError: it did not arrive as it was sent, or does not fit the engine, which then keeps the weights
                that it has; or learner and engine do not agree on it.
            NeedsWhole: this worker cannot take it in this form.
        """
        begin = time.perf_counter()
        if package.manifest.version != version:
            raise WeightSyncError(
                f"expected the weights of version {version} but version {package.manifest.version} arrived; "
                f"the worker keeps the weights it has."
            )
        whole = self._whole(package)
        with self._between_steps:
            self._engine.load_weights(whole.tensors(), version)
            difference = self._check(package.manifest)
        return Loaded(version, package.num_bytes, time.perf_counter() - begin, difference)

    def close(self) -> None:
        """Leave any group."""
        self._listener.close()

    def _whole(self, package: Package) -> WeightPackage:
        """The version in memory, and found to be what it should be."""
        if isinstance(package, Changes):
            return apply_changes(self._memory, package)
        if isinstance(package, Invitation):
            return self._listener.receive(package, self._memory_for(package.manifest))
        if package.is_base:
            return self._copied(package)
        check_arrays(package.manifest, package.arrays)
        return package

    def _copied(self, package: WeightPackage) -> WeightPackage:
        """The version in this worker's own memory, where the next one's changes will be made."""
        memory = self._memory_for(package.manifest)
        memory.version = None
        found: dict[str, TensorRecord] = {}
        for name, array in package.arrays.items():
            place = memory.arrays.get(name)
            if place is None:
                continue
            if place.shape == array.shape and place.dtype == array.dtype:
                found[name] = TensorRecord(memory.forms[name], copy_with_checksum(place, array))
            else:
                found[name] = record_of(array, memory.forms[name])
        check_found(package.manifest, found, package.arrays)
        memory.version = package.manifest.version
        return WeightPackage(package.manifest, memory.arrays)

    def _memory_for(self, manifest: Manifest) -> WeightMemory:
        """Memory is taken once: to ask the system for fresh pages costs as much as to fill them."""
        if self._memory is None or self._memory.forms != manifest.forms:
            self._memory = WeightMemory(manifest.forms)
        return self._memory

    def _check(self, manifest: Manifest) -> float | None:
        if manifest.canary is None or not isinstance(self._engine, ComputesLogp):
            return None
        return check_canary(manifest.canary, self._engine.logp, manifest.version)
