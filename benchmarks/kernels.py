"""Triton kernels of lightning layers: right first, then fast, against fla's simple GLA, flash attention and torch.

    python benchmarks/kernels.py                    on a CUDA device, a few minutes
    python benchmarks/kernels.py --check            the correctness part alone; without a device in Triton's interpreter

Correctness: outputs, final states and all gradients against the definition in float64, as the largest error over the
largest number. fla, where it is installed, is judged beside ours (bfloat16 alone; it keeps states in bfloat16).

Times: one sequence of 4k to 128k tokens, 16 heads of 64 and of 128, forward and forward + backward, medians after a
warm-up. A lightning layer computes in float32 after its SiLU, so ours is timed in float32 and in bfloat16; fla and
flash attention (torch's scaled_dot_product_attention, causal) in bfloat16. Then a decoding step and the gated norm
beside the torch code that they replace. Results go to benchmarks/results/kernels.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor

from model.errors import ModelError
from model.lightning import lightning_recurrence, lightning_step_, slopes
from model.norm import RMSNorm

RESULTS = Path(__file__).parent / "results" / "kernels.json"
NAMES = ("out", "final", "dq", "dk", "dv", "dstate")
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}
"""Of the largest error over the largest number: float32's sums, and bfloat16's own rounding beside TF32's."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A packed row to check: its sequences, heads of `width` and slopes from the strongest to the weakest."""

    lengths: tuple[int, ...]
    width: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"T{sum(self.lengths)}-N{len(self.lengths)}-H2-d{self.width}-{str(self.dtype).removeprefix('torch.')}"


SMALL = tuple(
    Case(lengths, width, dtype)
    for lengths, width, dtype in (
        ((1, 63, 66), 64, torch.float32),
        ((2, 65), 128, torch.bfloat16),
        ((5, 0, 70), 16, torch.float32),
    )
)
FULL = tuple(
    Case((1, 15, 63, 64, 65, 257, 1000), width, dtype)
    for width in (16, 32, 64, 128)
    for dtype in (torch.float32, torch.bfloat16)
)


def errors(attend: Attend, case: Case, device: str) -> dict[str, float]:
    """Largest error over largest number, of each result of `attend` and each gradient, against float64."""
    generator = torch.Generator().manual_seed(0)
    row = (sum(case.lengths), 2, case.width)
    states = (len(case.lengths), 2, case.width, case.width)
    inputs = [torch.randn(shape, generator=generator) for shape in (row, row, row, states, row, states)]
    inputs = [x.to(case.dtype if x.shape == row else torch.float32).to(device) for x in inputs]
    slope_H = torch.tensor([0.92, 4e-8], device=device)
    cu_seqlens = torch.tensor([0, *case.lengths], device=device).cumsum(0)
    found = _results(attend, inputs, slope_H, cu_seqlens)
    wanted = _results(lightning_recurrence, [x.double() for x in inputs], slope_H.double(), cu_seqlens)
    pairs = zip(NAMES, found, wanted, strict=True)
    return {name: float((ours.double() - exact).abs().max() / exact.abs().max()) for name, ours, exact in pairs}


def _results(attend: Attend, inputs: list[Tensor], slope_H: Tensor, cu_seqlens: Tensor) -> list[Tensor]:
    *leaves, grad_out, grad_final = inputs
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    q, k, v, state = leaves
    out, final = attend(q, k, v, slope_H, cu_seqlens, state)
    gradients = torch.autograd.grad([out, final], leaves, [grad_out.to(out.dtype), grad_final.to(final.dtype)])
    return [out.detach(), final.detach(), *gradients]


def implementations(device: str) -> dict[str, Attend]:
    """Ours, and fla's where it is installed and can be trusted. Triton is imported here, once it knows how to run."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from model.kernels.backend import choose

    where = torch.device(device)
    sides = {"triton": choose("triton", where, torch.bfloat16, 64)}
    if device == "cuda" and importlib.util.find_spec("fla"):
        try:
            sides["fla"] = choose("fla", where, torch.bfloat16, 64)
        except ModelError as error:
            print(f"without fla: {error}")
    return {name: kernels.attend for name, kernels in sides.items() if kernels}


def check(cases: tuple[Case, ...], device: str) -> list[dict[str, Any]]:
    """Errors of all sides; the process ends with a message if ours leave their bounds."""
    rows = []
    sides = implementations(device)
    print(f"largest error over largest number, on {device}:")
    print(f"{'':8}{'':28}" + "".join(f"{name:>9}" for name in NAMES))
    for case in cases:
        for side, attend in sides.items():
            if side == "fla" and case.dtype == torch.float32:
                continue
            found = errors(attend, case, device)
            rows.append({"side": side, "case": case.name, "errors": found})
            print(f"{side:8}{case.name:28}" + "".join(f"{error:9.1e}" for error in found.values()))
            wrong = {name: error for name, error in found.items() if not error <= BOUNDS[case.dtype]}
            if wrong and side == "triton":
                sys.exit(f"The Triton kernels are off at {case.name} by more than {BOUNDS[case.dtype]:.1e}: {wrong}.")
    return rows


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """Median time on the device, after a warm-up that compiles."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def flash(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True)
    return out, None


def attention_times(num_tokens: int, width: int, heads: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Forward, and forward + backward, of every side."""
    slope_H = slopes(heads, 0, 8).cuda()
    cu_seqlens = torch.tensor([0, num_tokens], device="cuda")
    ours = implementations("cuda")
    sides: list[tuple[str, Any, torch.dtype]] = [("triton float32", ours["triton"], torch.float32)]
    sides += [(f"{name} bfloat16", attend, torch.bfloat16) for name, attend in ours.items()]
    sides += [("flash bfloat16", flash, torch.bfloat16)]
    for name, attend, dtype in sides:
        q, k, v = (torch.randn(num_tokens, heads, width, device="cuda", dtype=dtype).requires_grad_() for _ in range(3))
        arguments = (q, k, v, slope_H, cu_seqlens, None)
        grad = torch.randn_like(attend(*arguments)[0])

        def forward(attend: Any = attend, arguments: Any = arguments) -> None:
            with torch.no_grad():
                attend(*arguments)

        def both(attend: Any = attend, arguments: Any = arguments, grad: Tensor = grad) -> None:
            torch.autograd.grad(attend(*arguments)[0], arguments[:3], grad)

        yield {
            "side": name,
            "tokens": num_tokens,
            "head_dim": width,
            "forward_ms": round(milliseconds(forward, repeats), 3),
            "forward_backward_ms": round(milliseconds(both, repeats), 3),
        }


def step_times(repeats: int, slots: int = 64, heads: int = 64, width: int = 128) -> dict[str, float]:
    """Milliseconds of one decoding step of a MiniMax-M1 layer, in place and by gathering and scattering."""
    from model.kernels.decode_triton import lightning_decode_

    pool = torch.zeros(slots, heads, width, width, device="cuda")
    slots_N = torch.randperm(slots, device="cuda")
    q, k, v = (torch.randn(slots, heads, width, device="cuda") for _ in range(3))
    slope_H = slopes(heads, 0, 8).cuda()

    def gather_and_scatter() -> None:
        state = pool[slots_N]
        lightning_step_(q, k, v, slope_H, state)
        pool[slots_N] = state

    in_place = milliseconds(lambda: lightning_decode_(q, k, v, slope_H, pool, slots_N), repeats)
    return {"triton_ms": round(in_place, 4), "torch_ms": round(milliseconds(gather_and_scatter, repeats), 4)}


def norm_times(repeats: int, tokens: int = 16384, width: int = 8192) -> dict[str, float]:
    """Milliseconds of the gated norm forward + backward, fused and in torch."""
    from model.kernels.gated_norm_triton import gated_rms_norm

    norm = RMSNorm(width, 1e-6, torch.bfloat16).cuda()
    x = torch.randn(tokens, width, device="cuda", requires_grad=True)
    gate, grad = (torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    leaves = [x, norm.weight, gate.requires_grad_()]
    fused = milliseconds(lambda: torch.autograd.grad(gated_rms_norm(*leaves, norm.eps), leaves, grad), repeats)
    plain = milliseconds(lambda: torch.autograd.grad(torch.sigmoid(gate) * norm(x), leaves, grad), repeats)
    return {"triton_ms": round(fused, 3), "torch_ms": round(plain, 3)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    results = []
    for width in args.widths:
        for num_tokens in args.tokens:
            for row in attention_times(num_tokens, width, args.heads, args.repeats):
                results.append(row)
                times = f"{row['forward_ms']:10.3f} {row['forward_backward_ms']:10.3f}"
                print(f"T{num_tokens}-H{args.heads}-d{width} {row['side']:16} {times} ms forward, forward + backward")
    step, norm = step_times(args.repeats), norm_times(args.repeats)
    print(f"decoding step of 64 slots, ms: {step}\ngated norm of 16384 x 8192 forward + backward, ms: {norm}")
    return {"heads": args.heads, "attention": results, "decoding_step": step, "gated_norm": norm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="correctness alone, on whatever is there")
    parser.add_argument("--tokens", type=int, nargs="*", default=[4096 << i for i in range(6)])
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    has_device = torch.cuda.is_available()
    if not (has_device or args.check):
        sys.exit("Timing these kernels needs a CUDA device, and there is none here; --check runs what can run without.")
    checked = check(FULL if has_device else SMALL, "cuda" if has_device else "cpu")
    if args.check:
        return
    libraries = ["triton"] + ["flash-linear-attention"] * (importlib.util.find_spec("fla") is not None)
    where = machine(*libraries) | {"gpu": torch.cuda.get_device_name()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": where, "errors": checked} | measure(args)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
