"""The learner on DeepSpeed's ZeRO: moments, gradients and weights are cut over the ranks instead of being copied.

DeepSpeed runs the backward passes, adds gradients up over the ranks and makes the step. Norm, clipping and whether to
step at all stay with us (cispo/learner/shared.py), so that they are what they are for every other learner. A state on
disk is LocalLearner's, too: any stage, any number of ranks and the local learner read what another has written.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cispo.errors import CheckpointError
from cispo.learner.config import LearnerConfig
from cispo.learner.local import PROBE_ACTIONS, add_up
from cispo.learner.ranks import Ranks
from cispo.learner.row import RowOutput, row_logp, row_loss
from cispo.learner.shared import SharedLearner, dtype_of, hidden_of
from cispo.learner.zero import ZeroOptimizer, engine_config, fresh_moments, seen_from_outside
from cispo.optimizer import OptimizerConfig
from cispo.types import Floats, PackedBatch, PackedRow, Trajectory, UpdateSettings
from model import HybridLM
from model.checkpoint import load_weights, stream_weights, unset_model
from model.checkpoint_names import Stream
from model.mismatch import mismatch_by_kind
from model.moe import Router

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, beside the number of steps."""


class DeepSpeedLearner(SharedLearner):
    """A DeepSpeed engine around HybridLM and torch.optim.AdamW.

    Weights *beside* the engine are whole on every rank, and so are their moments: all of them at stage 0, and in
    bfloat16 the routers', which stay float32 and would share a flat tensor with the others otherwise.
    """

    def __init__(self, lm: HybridLM, config: LearnerConfig, ranks: Ranks | None = None) -> None:
        self._deepspeed = import_deepspeed(config.device)
        torch.set_num_threads(config.num_threads)
        self.config, self.ranks, self.stage = config, ranks or Ranks(), config.deepspeed.stage
        self.lm, masters = _in_dtype(lm.to(config.device), dtype_of(config))
        self.lm.recompute = config.recompute
        self.model_config = self.lm.config
        self._weights: dict[str, nn.Parameter] = dict(self.lm.named_parameters())
        self._beside = dict(self._weights) if self.stage == 0 else _take_routers_out(self.lm) if masters else {}
        self._adams = [_adam(weights, config.optimizer) for weights in self._sides() if weights]
        self.engine, self._zero = self._start()
        self._reset_moments()
        for name, master in masters.items():
            self._write(name, "", master)
        self._give()

    def _sides(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The weights that the engine has, and those beside it."""
        return [w for name, w in self._weights.items() if name not in self._beside], list(self._beside.values())

    def _start(self) -> tuple[Any, ZeroOptimizer | None]:
        ensure_group(self._deepspeed, self.config.device)
        module = _Call(self.lm)
        engine, *_ = self._deepspeed.initialize(
            model=module, optimizer=self._adams[0], config=engine_config(self.config, self.lm), dist_init_required=False
        )
        if self.stage == 3:  # the head is asked for log-probabilities, not called
            self._deepspeed.zero.register_external_parameter(module, self.lm.lm_head.weight)
        return engine, seen_from_outside(engine.optimizer) if self.stage else None

    def new_optimizer(self, config: OptimizerConfig) -> None:
        """Forget the moments and begin with these settings."""
        for adam in self._adams:
            for group in adam.param_groups:
                group.update(betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
        self._reset_moments()

    def _reset_moments(self) -> None:
        if self._zero is not None:
            self._zero.reset_moments()
        for weight in self._beside.values():
            self._adams[-1].state[weight] = fresh_moments(weight)

    def _backward(self, batch: PackedBatch, settings: UpdateSettings) -> list[RowOutput]:
        """DeepSpeed takes the mean of the ranks' gradients: each is made num_ranks times as large."""
        self._outputs: list[RowOutput] = []
        for number, row in enumerate(batch.rows, start=1):
            self.engine.set_gradient_accumulation_boundary(self.stage > 0 and number == len(batch.rows))
            loss = self.engine(partial(self._loss, row, settings))
            self.engine.backward(loss * self.ranks.num_ranks, scale_wrt_gas=False)
        for weight in self._beside.values():
            if weight.grad is not None:
                weight.grad.div_(self.ranks.num_ranks)
        if self.ranks.num_ranks > 1:
            add_up(self._beside.values())
        return self._outputs

    def _loss(self, row: PackedRow, settings: UpdateSettings, lm: HybridLM) -> Tensor:
        """The scalar to differentiate; everything else goes to `_outputs`, since DeepSpeed returns tensors only."""
        output = row_loss(lm, row, settings, fresh_weights=self._fresh_weights)
        self._outputs.append(dataclasses.replace(output, loss=output.loss.detach()))
        return output.loss

    def _logp(self, batch: PackedBatch, temperature: float) -> list[Floats]:
        def logp(row: PackedRow) -> Floats:
            # A tensor, because DeepSpeed returns nothing else.
            return self.engine(lambda lm: torch.from_numpy(row_logp(lm, row, temperature))).numpy()

        return [logp(row) for row in batch.rows]

    def _clip(self, max_norm: float) -> float:
        parts = self._zero.gradients() if self._zero is not None else []
        whole = [weight.grad for weight in self._beside.values() if weight.grad is not None]
        squares = _squares(parts, self.lm.device)
        dist.all_reduce(squares)
        norm = (squares + _squares(whole, self.lm.device)).sqrt()
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).to(torch.float32)
        for gradient in (*parts, *whole):
            gradient.mul_(scale.to(gradient.device))
        return float(norm)

    def _step(self, lr: float) -> None:
        for adam in self._adams:
            for group in adam.param_groups:
                group["lr"] = lr
        if self._zero is not None:
            self.engine.step()
        if self._beside:
            self._adams[-1].step()
            self._adams[-1].zero_grad(set_to_none=True)

    def _drop(self) -> None:
        if self._zero is not None:
            self._zero.forget_gradients()
        if self._beside:
            self._adams[-1].zero_grad(set_to_none=True)

    def _stream(self) -> Stream:
        """At stage 3 each weight is gathered by itself and let go of before the next."""
        if self.stage < 3:
            yield from stream_weights(self.lm, self._weights.items())
            return
        for name, weight in self._weights.items():
            with self._deepspeed.zero.GatheredParameters([] if name in self._beside else [weight]):
                whole = weight.detach().clone()
            yield from stream_weights(self.lm, [(name, whole)])

    def _text_logp(self, tokens_T: Tensor) -> Tensor:
        """At stage 3 each weight is gathered where it is used, the head's by itself: it is asked, not called."""
        hidden_TD = hidden_of(self.lm, tokens_T)
        with self._deepspeed.zero.GatheredParameters([self.lm.lm_head.weight] if self.stage == 3 else []):
            return self.lm.logp(hidden_TD[:-1], tokens_T[1:])

    def probe(self, trajectory: Trajectory) -> dict[str, float]:
        """See LocalLearner; at stage 3 on a whole copy, which needs the room for one."""
        num_prefill = int(trajectory.action_mask_T.argmax())
        tokens_T = torch.from_numpy(trajectory.token_ids_T[: num_prefill + PROBE_ACTIONS]).to(self.lm.device)
        lm = self.lm
        if self.stage == 3:
            lm = unset_model(self.model_config, self.lm.device)
            load_weights(lm, self._stream())
        found = mismatch_by_kind(lm, tokens_T, num_prefill)
        return {f"mismatch/{kind}": difference for kind, difference in found.items()}

    def save(self, folder: Path) -> None:
        """Masters and moments as LocalLearner writes them.

        They are gathered weight by weight and each is kept by one rank until it is written: a rank holds as much as
        its own share once more.
        """
        import torch.distributed.checkpoint as dcp

        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Tensor] = {}
        for turn, name in enumerate(self._weights):
            entries = {_entry(name, kind): self._read(name, kind) for kind in ("", *MOMENTS)}
            entries[_entry(name, "step")] = torch.tensor(self._steps)
            if turn % self.ranks.num_ranks == self.ranks.rank:
                state |= {entry: tensor.cpu() for entry, tensor in entries.items()}
        dcp.save(state, checkpoint_id=folder, no_dist=self.ranks.num_ranks == 1)

    def load(self, folder: Path) -> None:
        """Read what `save` of any stage, or of LocalLearner, wrote: each rank reads some, and tells the others."""
        from torch.distributed.checkpoint.api import CheckpointException

        self._fresh_weights = False
        try:
            self._load(folder)
        except (Exception, CheckpointException) as error:  # torch's is not an Exception
            raise CheckpointError(
                f"the learner's state in {folder} cannot be read ({type(error).__name__}: {error}); "
                f"delete that checkpoint to resume from the one before it."
            ) from error

    def _load(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        has_moments = any(entry.startswith("moments/") for entry in saved)
        kinds = ("", *MOMENTS, "step") if has_moments else ("",)
        wanted = {_entry(name, kind) for name in self._weights for kind in kinds}
        if wanted != saved.keys():
            raise ValueError(f"it differs in {', '.join(sorted(wanted ^ saved.keys()))}")
        owner = {name: turn % self.ranks.num_ranks for turn, name in enumerate(self._weights)}
        mine = [name for name in self._weights if owner[name] == self.ranks.rank]
        state = {_entry(name, kind): self._unset(name, kind) for name in mine for kind in kinds}
        dcp.load(state, checkpoint_id=folder, no_dist=self.ranks.num_ranks == 1)
        self.new_optimizer(self.config.optimizer)
        for name in self._weights:
            for kind in kinds:
                tensor = state.get(_entry(name, kind), self._unset(name, kind))
                dist.broadcast(tensor, owner[name])
                self._write(name, kind, tensor)
        self._give()

    @property
    def _steps(self) -> float:
        """How many steps the moments have seen; all have seen the same."""
        if self._zero is not None:
            return self._zero.steps
        return float(self._adams[-1].state[self._weights["lm_head.weight"]]["step"])

    def _unset(self, name: str, kind: str) -> Tensor:
        weight = self._weights[name]
        shape = () if kind == "step" else getattr(weight, "ds_shape", weight.shape)
        return torch.empty(shape, dtype=torch.float32)

    def _read(self, name: str, kind: str) -> Tensor:
        """The whole master ("") or moment of a weight; all ranks must ask."""
        weight = self._weights[name]
        if name in self._beside:
            return (self._adams[-1].state[weight][kind] if kind else weight).detach()
        whole: Tensor
        if kind:
            whole = self._deepspeed.utils.safe_get_full_optimizer_state(weight, kind)
        else:
            whole = self._deepspeed.utils.safe_get_full_fp32_param(weight)
        return whole

    def _write(self, name: str, kind: str, value: Tensor) -> None:
        """What `_read` reads. Masters reach the weights by `_give`."""
        weight = self._weights[name]
        value = value.detach().to(self.lm.device)
        if name in self._beside:
            place = self._adams[-1].state[weight][kind] if kind else weight.detach()
            place.copy_(value)
        elif kind == "step":
            self._zero.set_steps(float(value))  # type: ignore[union-attr]  # what is not beside is the engine's
        elif kind:
            self._deepspeed.utils.safe_set_full_optimizer_state(weight, value, kind)
        else:
            self._deepspeed.utils.safe_set_full_fp32_param(weight, value)

    def _give(self) -> None:
        if self._zero is not None:
            self._zero.give()


class _Call(nn.Module):
    """What is done with the model as one call, so that DeepSpeed sees where the use of the weights begins and ends."""

    def __init__(self, lm: HybridLM) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, work: Callable[[HybridLM], Tensor]) -> Tensor:
        """What `work` makes of the model."""
        return work(self.lm)


def import_deepspeed(device: str) -> Any:
    """The library, told to use `device` and to compile nothing.

    On a CPU it would compile an operation for its collectives, which takes a minute and a compiler, and a build that
    was killed leaves a lock that the next one waits for. An empty list of what can be compiled spares that.
    """
    place = torch.device(device)
    os.environ.setdefault("DS_ACCELERATOR", place.type)
    os.environ["LOCAL_RANK"] = str(place.index or 0)
    import deepspeed

    if place.type == "cpu":
        deepspeed.ops.__compatible_ops__ = collections.defaultdict(bool)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # what it calls
    return deepspeed


def ensure_group(deepspeed: Any, device: str) -> None:
    """DeepSpeed wants a process group even of one process, which then lasts as long as the process."""
    if not dist.is_initialized():
        backend = "gloo" if torch.device(device).type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def _in_dtype(lm: HybridLM, dtype: torch.dtype) -> tuple[HybridLM, dict[str, Tensor]]:
    """A model that computes in `dtype`, and the values that its masters begin with, if they are not its weights."""
    if dtype.itemsize >= torch.float32.itemsize:
        return lm, {}
    narrow = unset_model(dataclasses.replace(lm.config, param_dtype=str(dtype).removeprefix("torch.")), lm.device)
    load_weights(narrow, stream_weights(lm))
    return narrow, dict(lm.named_parameters())


def _take_routers_out(lm: HybridLM) -> dict[str, nn.Parameter]:
    """The routers' weights by name; the routers use them still, but DeepSpeed, which would narrow them, finds none."""
    found = {}
    for path, module in lm.named_modules():
        if isinstance(module, Router):
            weight = module._parameters.pop("weight")
            assert weight is not None
            module.__dict__["weight"] = weight
            found[f"{path}.weight"] = weight
    return found


def _adam(weights: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(weights), lr=0.0, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def _squares(gradients: Iterable[Tensor], device: torch.device) -> Tensor:
    """The sum of all squares, float64 of shape (1,)."""
    total = torch.zeros(1, dtype=torch.float64, device=device)
    for gradient in gradients:
        total += torch.linalg.vector_norm(gradient.float()).double().square().to(device)
    return total


def _entry(name: str, kind: str) -> str:
    """What LocalLearner calls a master ("") or a moment on disk."""
    return f"moments/{name}/{kind}" if kind else f"weights/{name}"
