"""Lightning attention by flash-linear-attention's "simple GLA", a second implementation to compare with and to use.

Simple GLA is S_t = exp(g) S_{t-1} + k_t^T v_t, o_t = scale q_t S_t, with q, k, v [B, T, H, d]. For g_gamma = -slope and
scale = 1 it is lightning attention; both must be said, for left out they are no decay and 1 / sqrt(d). Packed rows
are B = 1 with cu_seqlens. (`fla.ops.lightning_attn` is no match: its slopes are linear in the head.)

fla keeps the states between chunks in bfloat16 on the way forward when its inputs are bfloat16.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

FEW = 16
"""Rows with fewer tokens go through the recurrent kernel: the products of the chunked one need 16."""

MISCOMPILING = ((3, 4, 0), (3, 7, 1))
"""Triton from the first version to before the second compiles fla's chunk_bwd_dqkwg wrongly on Hopper: dk is corrupt
(github.com/fla-org/flash-linear-attention, issue 640, pull request 983). fla itself raises for `g`, not `g_gamma`."""


class SimpleGla(Protocol):
    """What is used of `fla.ops.simple_gla`."""

    def chunk_simple_gla(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Chunk by chunk: for rows."""
        ...

    def fused_recurrent_simple_gla(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Token by token: for steps and short rows."""
        ...


def load() -> SimpleGla:
    """The library's module; ImportError without it."""
    return cast(SimpleGla, importlib.import_module("fla.ops.simple_gla"))


def miscompiled(capability: tuple[int, int], triton_version: str) -> str | None:
    """Why gradients would be wrong with this compute capability and Triton, or None."""
    release = tuple(int(part) for part in re.findall(r"\d+", triton_version)[:3])
    first, fixed = MISCOMPILING
    if capability[0] != 9 or not first <= release < fixed:
        return None
    return (
        f"Triton {triton_version} compiles the backward pass of flash-linear-attention wrongly on Hopper GPUs "
        "(its issue 640: corrupt dk from 3.4.0 to before 3.7.1), so upgrade Triton to 3.7.1 or later"
    )


@dataclass(frozen=True)
class FlaLightning:
    """The functions of `model.kernels.backend.Kernels`, on top of simple GLA."""

    ops: SimpleGla

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, cu_seqlens: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`model.lightning.lightning_attention` with given borders; gradients through both results."""
        run = self.ops.fused_recurrent_simple_gla if len(q) < FEW else self.ops.chunk_simple_gla
        return self._run(run, (q, k, v), slope_H, cu_seqlens, state)

    def step_(self, q: Tensor, k: Tensor, v: Tensor, slope_H: Tensor, pool: Tensor, slots_N: Tensor) -> Tensor:
        """One token for each of `slots_N`, whose states are copied out of the pool and back, for fla has no pools."""
        one_each = torch.arange(len(q) + 1, device=q.device)
        run = self.ops.fused_recurrent_simple_gla
        out, state = self._run(run, (q, k, v), slope_H, one_each, pool[slots_N])
        pool[slots_N] = state.to(pool.dtype)
        return out.to(pool.dtype)

    @staticmethod
    def _run(
        run: Any, qkv: tuple[Tensor, Tensor, Tensor], slope_H: Tensor, cu_seqlens: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (x.unsqueeze(0) for x in qkv)
        out, final = run(
            q,
            k,
            v,
            g_gamma=-slope_H.float(),
            scale=1.0,
            initial_state=None if state is None else state.float(),
            output_final_state=True,
            cu_seqlens=cu_seqlens,
        )
        return out.squeeze(0), final
