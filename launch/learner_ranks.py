"""The learner's ranks, each in a process of its own, and the one learner that the loop sees of them."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, InvalidStateError, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from cispo.errors import CispoError, DeadlineExceeded, WorkerDied
from cispo.learner.config import LearnerConfig
from cispo.learner.ranks import Ranks
from cispo.learner.shards import deal, gather_logp
from cispo.learner.shared import SharedLearner
from cispo.optimizer import OptimizerConfig
from cispo.protocols import WeightStream
from cispo.types import Floats, Ints, PackedBatch, Trajectory, UpdateResult, UpdateSettings
from launch.actors import Handle
from launch.messages import is_message
from launch.publisher import Publisher
from rollout.receiver import Package
from rollout.weight_package import WeightPackage, make_package

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""How long a rank's error waits for a better one: a rank's death shows at the others first, as a lost connection."""


class LearnerDied(CispoError):
    """A process of the learner is gone, and with it every update since the last checkpoint."""


class ExchangeFailed(CispoError):
    """A rank could not go on because another did not answer."""


class RankHost:
    """One rank of the learner where it lives; there is no learner before `join`, and which rank it is, is told then."""

    def __init__(self, make: Callable[[Any, Ranks], SharedLearner], config: Any, name: str) -> None:
        self._make, self._config, self._name = make, config, name
        self._rank = 0
        self._store: Any = None

    def node(self) -> str:
        """Ray's id of the node where it lives; "" without Ray."""
        ray = sys.modules.get("ray")
        return str(ray.get_runtime_context().get_node_id()) if ray is not None and ray.is_initialized() else ""

    def address(self) -> str:
        """Open the place where the ranks meet; "host:port". The system picks the port, so it is free."""
        self._store = self._open_store("0.0.0.0", 0, is_master=True)
        return f"{_own_address()}:{self._store.port}"

    def join(self, address: str, rank: int) -> None:
        """Meet the other ranks and build this one's part of the learner."""
        self._rank = rank
        config: LearnerConfig = self._config.learner
        ranks = Ranks()
        if config.num_ranks > 1 or config.kind != "local":  # their libraries want a group, if only of one
            host, _, port = address.rpartition(":")
            store = self._store or self._open_store(host, int(port), is_master=False)
            ranks = Ranks.join(
                store, self._rank, config.num_ranks, device=config.device, deadline_seconds=config.exchange_seconds
            )
        self.learner = self._make(self._config, ranks)
        self._publisher = self._make_publisher()

    def _make_publisher(self) -> Publisher:
        sync = self._config.sync
        is_narrow = self._config.learner.dtype == "bfloat16"
        return Publisher(
            self.call,
            sync,
            rank=self._rank,
            seed=self._config.seed,
            vocab_size=self.learner.model_config.vocab_size,
            tolerance=sync.canary_tolerance_bfloat16 if is_narrow else sync.canary_tolerance,
            own_process=self._config.cluster.kind != "inline",
            host=_own_address,
        )

    def _open_store(self, host: str, port: int, *, is_master: bool) -> Any:
        import torch.distributed as dist

        deadline = datetime.timedelta(seconds=self._config.learner.exchange_seconds)
        return dist.TCPStore(host, port, is_master=is_master, wait_for_workers=False, timeout=deadline)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of the learner. Raises ExchangeFailed where torch says that another rank is lost."""
        begin = time.monotonic()
        try:
            return getattr(self.learner, method)(*arguments, **named)
        except RuntimeError as error:
            if not is_exchange_error(error):
                raise
            raise ExchangeFailed(
                f"{self._name} lost the other ranks {time.monotonic() - begin:.0f} s into `{method}` "
                f"({' '.join(str(error).split())[:200]})."
            ) from error

    def all_weights(self) -> WeightPackage | None:
        """The present weights, on rank 0."""
        weights = self.call("weights")
        if self._rank == 0:
            return make_package(weights, 0)
        for _ in weights:
            pass
        return None

    def package(self, version: int) -> Package | None:
        """The present weights as `version`, on rank 0; the others help to gather them."""
        return self._publisher.package(version)

    def whole_package(self, version: int) -> Package:
        """The same as all of its bytes, for a worker that cannot take `package`; rank 0 alone is asked."""
        return self._publisher.whole(version)

    def send(self, num_workers: int) -> str:
        """Broadcast what `package` told; rank 0 alone is asked. "", or why it was given up."""
        return self._publisher.send(num_workers)

    def close(self) -> None:
        """End the learner."""
        if hasattr(self, "learner"):
            self._publisher.close()
            self.learner.close()


class LearnerRanks:
    """Implements the Learner protocol by calls to all ranks, each with a deadline."""

    def __init__(self, handles: Sequence[Handle], config: LearnerConfig, *, deadline_seconds: float) -> None:
        self.handles = list(handles)
        self.config = config
        self.deadline_seconds = deadline_seconds

    def join(self, seconds: float) -> None:
        """Let the ranks find each other and build what they hold.

        Those of a node get ranks in a row: the ranks of a tensor-parallel group are such a row, and they exchange most.
        """
        nodes = self._await("say where they are", [handle.call("node") for handle in self.handles], seconds)
        order = row_by_row(nodes)
        self.handles = [self.handles[index] for index in order]
        if self.config.kind == "megatron" and (width := self.config.layout.tensor) > 1:
            _warn_of_wide_groups([nodes[index] for index in order], width)
        address = self._await("find a place to meet", [self.handles[0].call("address")], seconds)[0]
        calls = [handle.call("join", address, rank) for rank, handle in enumerate(self.handles)]
        self._await("build the policy", calls, seconds)

    def update(self, batch: PackedBatch, settings: UpdateSettings) -> UpdateResult:
        """See Learner; each rank gets its own rows only."""
        results: list[UpdateResult] = self._deal("update", batch, settings)
        return dataclasses.replace(results[0], logp_rows=self._gather(batch, [r.logp_rows for r in results]))

    def logp(self, batch: PackedBatch, temperature: float) -> tuple[Floats, ...]:
        """See Learner; each rank gets its own rows only."""
        return self._gather(batch, self._deal("logp", batch, temperature))

    def _deal(self, method: str, batch: PackedBatch, argument: Any) -> list[Any]:
        """A call of a batch's rows, of which each rank gets its own; what every rank returned."""
        shards = deal(batch, self.config.num_shards)
        calls = [
            handle.call("call", method, shards[self.config.shard_of(rank)], argument)
            for rank, handle in enumerate(self.handles)
        ]
        return self._await(method, calls)

    def _gather(self, batch: PackedBatch, by_rank: Sequence[tuple[Floats, ...]]) -> tuple[Floats, ...]:
        """The rows of `batch` from what each rank knows of its own."""
        shards: list[list[tuple[Floats, ...]]] = [[] for _ in range(self.config.num_shards)]
        for rank, rows in enumerate(by_rank):
            shards[self.config.shard_of(rank)].append(rows)
        return gather_logp(batch, shards)

    def weights(self) -> WeightStream:
        """See Learner; all at once, because an iterator cannot cross a process border."""
        packages = self._await("send its weights", [handle.call("all_weights") for handle in self.handles])
        tensors: WeightStream = packages[0].tensors()
        return tensors

    def text_logp(self, token_ids: Ints) -> Floats:
        """See Learner."""
        found: Floats = self._all("text_logp", token_ids)
        return found

    def package(self, version: int) -> Any:
        """A reference to the weights as `version`, which stay with rank 0 or in its node's object store."""
        calls = [handle.reference("package", version) for handle in self.handles]
        return self._await(f"pack the weights of version {version}", calls)[0]

    def whole_package(self, version: int) -> Future[Any]:
        """A reference to the version that was packed last, for a worker that cannot take what `package` gave.

        It raises as the other calls do, the deadline too, and WeightSyncError if another version was packed since.
        """
        what = f"pack the whole of version {version}"
        made: Future[Any] = Future()

        def settle(method: Callable[[Any], None], value: Any) -> None:
            with suppress(InvalidStateError):  # the answer and the deadline came together
                method(value)

        def pass_on(done: Future[Any]) -> None:
            alarm.cancel()
            error = done.exception()
            if error is None:
                settle(made.set_result, done.result())
            else:
                settle(made.set_exception, _most_telling([error], what))

        late = _silence(self.deadline_seconds, [self.handles[0].name], what)
        alarm = threading.Timer(self.deadline_seconds, settle, (made.set_exception, late))
        alarm.daemon = True
        alarm.start()
        self.handles[0].reference("whole_package", version).add_done_callback(pass_on)
        return made

    def send(self, num_workers: int) -> Future[str]:
        """Begin to broadcast the version that was packed last."""
        return self.handles[0].call("send", num_workers)

    def sent(self, sending: Future[str], version: int) -> str:
        """Wait for the end of a broadcast; why it was given up, or ""."""
        reason: str = self._await(f"broadcast version {version}", [sending])[0]
        return reason

    def probe(self, trajectory: Trajectory) -> dict[str, float]:
        """See Learner."""
        metrics: dict[str, float] = self._all("probe", trajectory)
        return metrics

    def new_optimizer(self, config: OptimizerConfig) -> None:
        """See Learner."""
        self._all("new_optimizer", config)

    def save(self, folder: Path) -> None:
        """See Learner; every rank writes its part into the same folder."""
        self._all("save", folder)

    def load(self, folder: Path) -> None:
        """See Learner."""
        self._all("load", folder)

    def export(self, folder: Path, *, eos_token_id: int | None = None, pad_token_id: int | None = None) -> None:
        """See Learner."""
        self._all("export", folder, eos_token_id=eos_token_id, pad_token_id=pad_token_id)

    def _all(self, method: str, *arguments: Any, **named: Any) -> Any:
        """The same call on every rank; what rank 0 returned."""
        calls = [handle.call("call", method, *arguments, **named) for handle in self.handles]
        return self._await(method, calls)[0]

    def _await(self, what: str, calls: Sequence[Future[Any]], seconds: float | None = None) -> list[Any]:
        """The calls' results; a dead or silent rank ends the run with a sentence, for its part of the state is gone."""
        seconds = self.deadline_seconds if seconds is None else seconds
        _, pending = wait(calls, timeout=seconds, return_when=FIRST_EXCEPTION)
        failed = [call for call in calls if call.done() and call.exception() is not None]
        if failed:
            _, pending = wait(calls, timeout=GRACE_SECONDS if _is_consequence(failed) else 0)
            raise _most_telling([call.exception() for call in calls if call.done()], what)
        if pending:
            silent = [handle.name for handle, call in zip(self.handles, calls, strict=False) if call in pending]
            raise _silence(seconds, silent, what)
        return [call.result() for call in calls]


def row_by_row(nodes: Sequence[str]) -> list[int]:
    """The places in `nodes`, those of one node behind each other, nodes in the order in which they first come."""
    first = {node: place for place, node in reversed(list(enumerate(nodes)))}
    return sorted(range(len(nodes)), key=lambda place: first[nodes[place]])


def _warn_of_wide_groups(nodes: Sequence[str], width: int) -> None:
    wide = sum(len(set(nodes[begin : begin + width])) > 1 for begin in range(0, len(nodes), width))
    if wide:
        log.warning(
            "%d of %d tensor-parallel groups of %d ranks lie on more than one node and exchange over the network in "
            "every layer; take learner.layout.tensor for which the ranks of a node are a multiple.",
            wide,
            len(nodes) // width,
            width,
        )


def _silence(seconds: float, names: Sequence[str], what: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"The driver waited {seconds:g} s for {', '.join(names)} to {what}; look at the log, or raise "
        f"cluster.update_seconds if the learner is that slow."
    )


def is_exchange_error(error: RuntimeError) -> bool:
    """True for what torch raises when another rank is gone or silent: classes of its own by NCCL, plain by gloo."""
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "connection closed by peer" in text


def _is_consequence(failed: Sequence[Future[Any]]) -> bool:
    return all(isinstance(call.exception(), ExchangeFailed) for call in failed)


def _most_telling(errors: Sequence[BaseException | None], what: str) -> BaseException:
    """A death explains the lost connections of the others; an error of its own is told before them, too."""
    raised = [error for error in errors if error is not None]
    for error in raised:
        if isinstance(error, WorkerDied):
            return LearnerDied(
                f"{error} The learner was to {what}, and what it learnt since the last checkpoint went with it."
            )
    own = [error for error in raised if not isinstance(error, ExchangeFailed)]
    if own:
        return next((error for error in own if is_message(error)), own[0])
    return LearnerDied(
        f"{raised[0]} No rank is known to have died, so the network or a rank that is stuck is the cause; what was "
        f"learnt since the last checkpoint is lost."
    )


def _own_address() -> str:
    """By which other machines reach this one: Ray's address, if this is an actor; the loopback without a network."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return str(ray.util.get_node_ip_address())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing: it only picks the interface
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
