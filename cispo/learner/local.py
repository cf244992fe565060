"""The learner in plain torch: what every other learner must agree with.

One process, or several that learn from different rows. Each rank then has a whole copy of the weights, or a part of
every tensor, which is gathered layer by layer when it is needed (FSDP2).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cispo.errors import CheckpointError
from cispo.learner.config import LearnerConfig
from cispo.learner.master import MasterWeights
from cispo.learner.ranks import Ranks
from cispo.learner.row import RowOutput, row_logp, row_loss
from cispo.learner.shared import SharedLearner, dtype_of, hidden_of
from cispo.optimizer import OptimizerConfig
from cispo.types import Floats, PackedBatch, Trajectory, UpdateSettings
from model import HybridLM
from model.checkpoint import load_weights, stream_weights, unset_model
from model.checkpoint_names import Stream
from model.mismatch import mismatch_by_kind
from model.moe import Router

PROBE_ACTIONS = 32
"""Actions that a probe decodes one by one: 0.3 s for the embedded default on one busy core."""

SUM_ELEMENTS = 1 << 25
"""Gradients that whole copies add up at a time: 128 MiB in float32."""


class LocalLearner(SharedLearner):
    """One HybridLM and torch.optim.AdamW."""

    def __init__(self, lm: HybridLM, config: LearnerConfig, ranks: Ranks | None = None) -> None:
        torch.set_num_threads(config.num_threads)
        self.config, self.ranks = config, ranks or Ranks()
        self._is_sharded = config.copies == "sharded" and self.ranks.num_ranks > 1
        self.lm, self.masters = _in_dtype(lm.to(config.device), dtype_of(config), self._is_sharded)
        self.lm.recompute = config.recompute
        self.model_config = self.lm.config
        if self._is_sharded:
            shard(self.lm, self.ranks.num_ranks)
            self.masters = MasterWeights(self.lm)
        self.new_optimizer(config.optimizer)

    def new_optimizer(self, config: OptimizerConfig) -> None:
        """Forget the moments and begin with these settings."""
        self.optimizer = torch.optim.AdamW(
            self.masters.parameters(),
            lr=0.0,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over each tensor: a third of the time on a CPU
        )

    def _backward(self, batch: PackedBatch, settings: UpdateSettings) -> list[RowOutput]:
        self._drop()
        outputs = []
        for row in batch.rows:
            output = row_loss(self.lm, row, settings, fresh_weights=self._fresh_weights)
            output.loss.backward()
            self.masters.take_gradients()
            outputs.append(output)
        if self.ranks.num_ranks > 1 and not self._is_sharded:
            add_up(self.masters.parameters())
        return outputs

    def _logp(self, batch: PackedBatch, temperature: float) -> list[Floats]:
        rows = [row_logp(self.lm, row, temperature) for row in batch.rows]
        for module in _sharded(self.lm).values() if self._is_sharded else ():
            module.reshard()  # no backward pass follows that would
        return rows

    def _clip(self, max_norm: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.masters.parameters(), max_norm)
        return float(norm.full_tensor() if _is_part(norm) else norm)  # type: ignore[attr-defined]

    def _step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.masters.give()

    def _drop(self) -> None:
        self.lm.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _stream(self) -> Stream:
        """Sharded weights as FSDP gathers them: those of a layer together, then those beside the layers."""
        if not self._is_sharded:
            yield from stream_weights(self.lm)
        for path, module in _sharded(self.lm).items():
            with _gathered([module]):
                own = [(f"{path}.{name}" if path else name, w) for name, w in module.named_parameters()]
                # Copies, because a numpy array on gathered memory would keep FSDP from letting go of it.
                yield from stream_weights(self.lm, [(name, w.clone()) for name, w in own if not _is_part(w)])

    def _text_logp(self, tokens_T: Tensor) -> Tensor:
        hidden_TD = hidden_of(self.lm, tokens_T)
        with _gathered([self.lm] if self._is_sharded else []):  # the head is asked, not called
            return self.lm.logp(hidden_TD[:-1], tokens_T[1:])

    def probe(self, trajectory: Trajectory) -> dict[str, float]:
        """See Learner; on the prompt and the first actions. The model of this process runs both sides.

        Sharded weights are first copied together, because FSDP cuts those that it gathered after each forward pass.
        """
        num_prefill = int(trajectory.action_mask_T.argmax())
        tokens_T = torch.from_numpy(trajectory.token_ids_T[: num_prefill + PROBE_ACTIONS]).to(self.lm.device)
        lm = self.lm
        if self._is_sharded:
            lm = unset_model(self.model_config, self.lm.device)
            load_weights(lm, self._stream())
        found = mismatch_by_kind(lm, tokens_T, num_prefill)
        return {f"mismatch/{kind}": difference for kind, difference in found.items()}

    def save(self, folder: Path) -> None:
        """Masters and moments by torch.distributed.checkpoint: any number of ranks, in either way, can read them."""
        import torch.distributed.checkpoint as dcp

        folder.mkdir(parents=True, exist_ok=True)
        dcp.save(self._state(), checkpoint_id=folder, no_dist=self.ranks.num_ranks == 1)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        self._fresh_weights = False
        try:
            saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
            self.new_optimizer(self.config.optimizer)
            if any(name.startswith("moments/") for name in saved):
                self._allocate_moments()
            state = self._state()
            if state.keys() != saved.keys():
                raise ValueError(f"it differs in {', '.join(sorted(state.keys() ^ saved.keys()))}")
            dcp.load(state, checkpoint_id=folder, no_dist=self.ranks.num_ranks == 1)
            self.masters.give()
        except (Exception, CheckpointException) as error:  # torch's is not an Exception
            raise CheckpointError(
                f"the learner's state in {folder} cannot be read ({type(error).__name__}: {error}); "
                f"delete that checkpoint to resume from the one before it."
            ) from error

    def _state(self) -> dict[str, Any]:
        """Every tensor that a restart needs, by name; settings are the configuration's."""
        state: dict[str, Any] = {}
        for name, master in self.masters.named():
            state[f"weights/{name}"] = master.detach()
            for kind, moment in self.optimizer.state[master].items():
                state[f"moments/{name}/{kind}"] = moment
        return state

    def _allocate_moments(self) -> None:
        """Moments of the right shapes, which a step of nothing makes."""
        for master in self.masters.parameters():
            master.grad = torch.zeros_like(master)
        self.optimizer.step()  # with a rate of 0
        self._drop()


def _in_dtype(lm: HybridLM, dtype: torch.dtype, is_sharded: bool) -> tuple[HybridLM, MasterWeights]:
    """A model that computes in `dtype`, and its masters, which keep the precision that `lm` came with."""
    if dtype.itemsize >= torch.float32.itemsize:
        return lm, MasterWeights(lm)
    narrow = unset_model(dataclasses.replace(lm.config, param_dtype=str(dtype).removeprefix("torch.")), lm.device)
    if is_sharded:  # FSDP keeps the shards as they are and casts what it gathers: the shards are the masters
        narrow.to(lm.config.dtype)
    load_weights(narrow, stream_weights(lm))
    return narrow, MasterWeights(narrow, dict(lm.named_parameters()))


def shard(lm: HybridLM, num_ranks: int) -> None:
    """Cut every weight over the ranks; a layer's are gathered while it runs, in the dtype of `lm.config`.

    A router is gathered by itself, because its weight stays float32. Gradients are sums over the ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(lm.device.type, (num_ranks,))
    policy = MixedPrecisionPolicy()
    if lm.config.dtype.itemsize < torch.float32.itemsize:
        policy = MixedPrecisionPolicy(param_dtype=lm.config.dtype, reduce_dtype=torch.float32)
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .FSDP.*Router. returned a view")  # none is written to
        for module in lm.modules():
            if isinstance(module, Router):
                fully_shard(module, mesh=mesh)
    for module in (*lm.model.layers, lm):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    for module in _sharded(lm).values():
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows neither means nor scaled sums


def _sharded(lm: HybridLM) -> dict[str, Any]:
    """By path, the modules whose weights FSDP gathers together; without those of such modules inside."""
    from torch.distributed.fsdp import FSDPModule

    return {path: module for path, module in lm.named_modules() if isinstance(module, FSDPModule)}


@contextmanager
def _gathered(modules: Iterable[Any]) -> Iterator[None]:
    """The weights of sharded modules are whole inside."""
    modules = list(modules)
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()


def add_up(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the ranks, many tensors at a time; a missing one counts as zero."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= SUM_ELEMENTS:
            _add_up(bucket)
            bucket = []
    if bucket:
        _add_up(bucket)


def _add_up(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def _is_part(tensor: Any) -> bool:
    """This rank's part of a tensor; asked by what such a one can do, because to import its class takes a second."""
    return hasattr(tensor, "full_tensor")
