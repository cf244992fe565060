"""The learner's end of a publish: a version in the form that the configured transport sends.

Every rank takes part, because weights are gathered and the canary is computed by all of them together; rank 0 alone has
something to publish.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from cispo.errors import WeightSyncError
from cispo.protocols import WeightStream
from configs.fleet import SyncConfig
from rollout.broadcast import Sender
from rollout.canary import Canary, canary_prompts
from rollout.changed_bytes import find_changes, with_canary
from rollout.receiver import Package
from rollout.weight_memory import TensorForm, WeightMemory
from rollout.weight_package import Manifest, TensorRecord, WeightPackage, fill, make_package

log = logging.getLogger(__name__)

Call = Callable[..., Any]
"""call(method, *arguments): a method of this rank's learner."""


class Publisher:
    """One rank's.

    Args:
        call: reaches the learner.
        config: of the sync.
        rank: of this process.
        seed, vocab_size: what the canary's prompts are made of.
        tolerance: the canary's, in nats.
        own_process: nobody else reads what is published before this process goes on to change its weights.
        host: by which workers reach this process.
    """

    def __init__(
        self,
        call: Call,
        config: SyncConfig,
        *,
        rank: int,
        seed: int,
        vocab_size: int,
        tolerance: float,
        own_process: bool,
        host: Callable[[], str],
    ) -> None:
        self._call, self._config, self._rank = call, config, rank
        self._prompts = canary_prompts(vocab_size, seed, config.canary_tokens)
        self._tolerance = tolerance
        self._own_process = own_process
        self._host = host
        self._memory: WeightMemory | None = None
        self._records: Mapping[str, TensorRecord] = {}
        self._canary: Canary | None = None
        self._sender: Sender | None = None

    def package(self, version: int) -> Package | None:
        """The present weights as `version`; None on all ranks but the first."""
        self._canary = self._sing()
        if self._rank > 0:
            self._help()
            return None
        if self._config.transport == "object_store":
            # What another process is to have is copied when it is handed over, so one copy is made here or there.
            return make_package(self._call("weights"), version, self._canary, copies=not self._own_process)
        if self._config.transport == "broadcast":
            self._write(version)
            return self._ensured_sender().invitation(self._manifest(version))
        return self._changes(version)

    def whole(self, version: int) -> WeightPackage:
        """The version published last, all of it, for a worker that cannot take what `package` gave."""
        if self._memory is None or self._memory.version != version:
            held = None if self._memory is None else self._memory.version
            raise WeightSyncError(
                f"a worker needs the weights of version {version}, and the learner keeps those of version {held}; "
                f"the worker is to be given a version that was published later."
            )
        return self._whole(version)

    def send(self, num_workers: int) -> str:
        """Broadcast what `package` told last; "", or why it was given up."""
        if self._memory is None or self._sender is None:
            raise WeightSyncError("a broadcast needs a package first; call `package`, then `send`.")
        return self._sender.send(self._memory, num_workers)

    def close(self) -> None:
        """Leave the workers."""
        if self._sender is not None:
            self._sender.close()

    def _sing(self) -> Canary | None:
        """What the learner computes with the present weights."""
        logp = [self._call("text_logp", prompt) for prompt in self._prompts]
        if not logp:
            return None
        return Canary(self._prompts, tuple(logp), self._tolerance)

    def _help(self) -> None:
        """Read the stream as often as rank 0 does, which gathers every weight from all ranks."""
        if self._config.transport != "object_store" and self._memory is None:
            self._memory = WeightMemory({})
            _forms(self._call("weights"))
        for _ in self._call("weights"):
            pass

    def _write(self, version: int) -> None:
        """Copy the weights into this process's own block of memory."""
        if self._memory is None:
            self._memory = WeightMemory(_forms(self._call("weights")))
        self._records = fill(self._memory, self._call("weights"), version)

    def _changes(self, version: int) -> Package:
        if self._memory is None or self._memory.version is None:
            self._write(version)
            return self._whole(version)
        changes = find_changes(self._memory, self._records, self._call("weights"), version, self._config.block_bytes)
        self._records = changes.manifest.records
        return with_canary(changes, self._canary)

    def _whole(self, version: int) -> WeightPackage:
        assert self._memory is not None
        is_base = self._config.transport == "changed_bytes"
        return WeightPackage(self._manifest(version), self._memory.arrays, is_base)

    def _manifest(self, version: int) -> Manifest:
        return Manifest(version, self._records, self._canary)

    def _ensured_sender(self) -> Sender:
        if self._sender is None:
            self._sender = Sender(self._host(), self._config.bucket_mb << 20, self._config.deadline_seconds)
        return self._sender


def _forms(weights: WeightStream) -> dict[str, TensorForm]:
    return {name: TensorForm.of(tensor) for name, tensor in weights}
