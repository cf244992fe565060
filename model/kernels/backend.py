"""Which code computes lightning attention: the one place that chooses, by device, dtype and what is installed.

    torch    the plain code in model/lightning.py: on CPUs, and wherever nothing faster can run
    triton   this folder's kernels: on CUDA devices, whenever Triton is installed
    fla      flash-linear-attention's simple GLA, an independent second opinion: on CUDA devices, when asked for

CISPO_KERNELS=<name> in the environment when a process starts asks for one; whatever it lacks is then an error.
Triton and fla are imported when they are chosen and not before, so that the model runs where they are not installed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import ModelError

VARIABLE = "CISPO_KERNELS"
NAMES = ("torch", "triton", "fla")


@dataclass(frozen=True)
class Kernels:
    """What a lightning layer calls in place of the torch code.

    Attributes:
        name: of the implementation.
        attend: (q, k, v, slope_H, cu_seqlens, state or None) -> out, final states, as `lightning_attention`.
        step_: (q, k, v, slope_H, pool, slots_N) -> out [N, H, d]; the pool [S, H, d, d] is changed in place.
        gated_norm: (x [T, W], weight [W], gate [T, W], eps) -> sigmoid(gate) * RMSNorm(x), in the weight's dtype.
    """

    name: str
    attend: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    step_: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    gated_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]


def kernels_for(x_THd: Tensor) -> Kernels | None:
    """The kernels for tensors like `x_THd` [T, H, d], or None for the torch code.

    Raises ModelError if CISPO_KERNELS names kernels that are unknown, not installed or cannot serve such tensors.
    """
    name = asked()
    if name is None and x_THd.is_cpu:
        return None
    return choose(name, x_THd.device, x_THd.dtype, x_THd.shape[-1])


@functools.cache
def asked() -> str | None:
    """What CISPO_KERNELS names, read once: looking it up for every layer and token would cost microseconds."""
    return os.environ.get(VARIABLE)


@functools.cache
def choose(name: str | None, device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernels | None:
    """`kernels_for` by values; a `name` of None means the fastest that can run. Raises ModelError."""
    if name is None:
        able = device.type == "cuda" and _installed("triton") and _fault_of_triton(device, dtype, head_dim) is None
        return _triton_kernels() if able else None
    if name not in NAMES:
        raise ModelError(f"{VARIABLE} names the kernels to use, one of {', '.join(NAMES)}, but it is {name!r}.")
    if name == "torch":
        return None
    needed = {"triton": "triton", "fla": "flash-linear-attention"}
    for kind in ("triton", name):
        if not _installed(kind):
            raise ModelError(
                f'The kernels "{name}" need the package {needed[kind]}, which is not installed; install the extra '
                f"with pip install 'cispo[gpu]', or set {VARIABLE}=torch."
            )
    fault = _fault_of_fla(device) if name == "fla" else _fault_of_triton(device, dtype, head_dim)
    if fault is not None:
        raise ModelError(f'The kernels "{name}" cannot run here: {fault}; set {VARIABLE}=torch to do without.')
    return _fla_kernels() if name == "fla" else _triton_kernels()


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _fault_of_triton(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why our Triton kernels cannot serve, or None."""
    from model.kernels.lightning_triton import IS_INTERPRETED, supports

    if device.type != "cuda" and not IS_INTERPRETED:
        return f"they need a CUDA device or Triton's interpreter (TRITON_INTERPRET=1), and the tensors are on {device}"
    if not supports(dtype, head_dim):
        return (
            "they have float32, bfloat16 and float16 with heads of 16, 32, 64, 128 or 256, and not "
            f"{dtype} with heads of {head_dim}"
        )
    return None


def _fault_of_fla(device: torch.device) -> str | None:
    """Why fla cannot serve, or None."""
    import triton

    from model.kernels.fla_backend import miscompiled

    if device.type != "cuda":
        return f"they need a CUDA device, and the tensors are on {device}"
    return miscompiled(torch.cuda.get_device_capability(device), triton.__version__)


def _triton_kernels() -> Kernels:
    from model.kernels.decode_triton import lightning_decode_
    from model.kernels.gated_norm_triton import gated_rms_norm
    from model.kernels.lightning_triton import lightning_attention

    return Kernels("triton", lightning_attention, lightning_decode_, gated_rms_norm)


def _fla_kernels() -> Kernels:
    from model.kernels.fla_backend import FlaLightning, load
    from model.kernels.gated_norm_triton import gated_rms_norm

    fla = FlaLightning(load())
    return Kernels("fla", fla.attend, fla.step_, gated_rms_norm)
