"""How exact each kind of layer is, in float32 and in bfloat16, against float64; and how far sampling is from training.

    python benchmarks/precision.py    about a minute; writes results/precision.json and the tables of docs/precision.md

Weights are bfloat16 values, as in published checkpoints, and every layer gets the input that it has in the float64
model, rounded to bfloat16 values. So all dtypes compute the same function of the same numbers, and the error is that
of the computation. It is |computed - exact| / |exact| in Euclidean norms over all tokens, the worst layer of each kind;
for the head, of the log-probabilities of the tokens. "Naive" is the same layer in bfloat16 without what our code keeps
in float32: the decay and the state of lightning layers, the router, the head's product.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor, nn

from model import HybridConfig, HybridLM
from model.lightning import LightningAttention
from model.mismatch import KINDS, mismatch_by_kind
from model.moe import MoE

RESULTS = Path(__file__).parent / "results" / "precision.json"
PAGE = Path(__file__).parents[1] / "docs" / "precision.md"
CONFIG = HybridConfig(
    vocab_size=8192,
    hidden_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    rotary_dim=32,
    intermediate_size=256,
    num_local_experts=8,
    attn_type_list=(0,) * 7 + (1,),
    initializer_range=0.05,
)
LENGTH, PROMPT = 512, 384
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Runs = dict[tuple[str, int], tuple[tuple[Any, ...], Tensor]]


def rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().to(tensor.dtype)


def make_exact(seed: int = 0) -> HybridLM:
    """The float64 model with weights that are bfloat16 values."""
    torch.manual_seed(seed)
    lm = HybridLM(CONFIG).double()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.copy_(rounded(parameter))
    return lm


def places(lm: HybridLM) -> dict[tuple[str, int], nn.Module]:
    modules: dict[tuple[str, int], nn.Module] = {}
    for index, layer in enumerate(lm.model.layers):
        kind = "lightning" if isinstance(layer.self_attn, LightningAttention) else "softmax"
        modules[kind, index], modules["moe", index] = layer.self_attn, layer.block_sparse_moe
    return modules


def exact_runs(lm: HybridLM, tokens: Tensor) -> Runs:
    """(input rounded to bfloat16 values and other arguments, exact output for it) of every layer, and of the head."""
    inputs: dict[tuple[str, int], tuple[Any, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, args, place=place: inputs.update({place: args}))
        for place, module in places(lm).items()
    ]
    hidden = lm(tokens, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
    for hook in hooks:
        hook.remove()
    runs: Runs = {}
    for place, module in places(lm).items():
        x, *others = inputs[place]
        arguments = (rounded(x), *others)
        runs[place] = arguments, module(*arguments)
    hidden = rounded(hidden[:-1])
    runs["head", len(lm.model.layers)] = (hidden, tokens[1:]), lm.logp(hidden, tokens[1:])
    return runs


def error(computed: Tensor, exact: Tensor) -> float:
    return float((computed.double() - exact).norm() / exact.norm())


def worst_by_kind(runs: Runs, compute: Callable[[tuple[str, int], tuple[Any, ...]], Tensor | None]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for place, (arguments, exact) in runs.items():
        computed = compute(place, arguments)
        if computed is not None:
            worst[place[0]] = max(worst.get(place[0], 0.0), error(computed, exact))
    return worst


def errors_in(lm: HybridLM, runs: Runs, dtype: torch.dtype) -> dict[str, float]:
    """Of our code."""
    modules = places(lm)

    def compute(place: tuple[str, int], arguments: tuple[Any, ...]) -> Tensor:
        x, *others = arguments
        if place[0] == "head":
            return lm.logp(x.to(dtype), *others)
        return modules[place](x.to(dtype), *others)

    return worst_by_kind(runs, compute)


def naive_errors(lm: HybridLM, runs: Runs) -> dict[str, float]:
    """Of the bfloat16 model `lm` without its float32 parts."""
    modules = places(lm)

    def compute(place: tuple[str, int], arguments: tuple[Any, ...]) -> Tensor | None:
        x = arguments[0].bfloat16()
        if place[0] == "head":
            logits = F.linear(x, lm.lm_head.weight)
            return torch.log_softmax(logits, -1).gather(1, arguments[1][:, None]).squeeze(1)
        module = modules[place]
        if isinstance(module, LightningAttention):
            return naive_lightning(module, x)
        return naive_moe(module, x) if isinstance(module, MoE) else None

    return worst_by_kind(runs, compute)


def naive_lightning(module: LightningAttention, u: Tensor) -> Tensor:
    """Token by token, decay and state in bfloat16."""
    qkv = F.silu(module.qkv_proj(u)).view(len(u), module.num_heads, -1)
    decay = torch.exp(-module.slope_values).bfloat16()[:, None, None]
    state, outs = torch.zeros(1, dtype=torch.bfloat16), []
    for q, k, v in zip(*qkv.chunk(3, dim=-1), strict=True):
        state = decay * state + k[:, :, None] * v[:, None, :]
        outs.append((q[:, None, :] @ state).squeeze(1))
    normed = module.norm(torch.stack(outs).flatten(1))
    return module.out_proj(torch.sigmoid(module.output_gate(u)) * normed)


def naive_moe(module: MoE, x: Tensor) -> Tensor:
    """Router in bfloat16: near ties go to other experts."""
    prob = torch.softmax(F.linear(x, module.gate.weight.bfloat16()), dim=-1)
    weight, expert = torch.topk(prob, module.gate.num_chosen, dim=-1)
    return module.experts.infer(x, weight / weight.sum(-1, keepdim=True), expert)


def whole_model(lm: HybridLM, tokens: Tensor, exact: Tensor) -> dict[str, float]:
    """Of the log-probabilities of the tokens, all layers together, in nats."""
    hidden = lm(tokens, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
    difference = (lm.logp(hidden[:-1], tokens[1:]).double() - exact).abs()
    return {"mean": float(difference.mean()), "max": float(difference.max())}


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    lm = make_exact()
    tokens = torch.randint(0, CONFIG.vocab_size, (LENGTH,))
    with torch.no_grad():
        runs = exact_runs(lm, tokens)
        hidden = lm(tokens, torch.arange(LENGTH), torch.tensor([0, LENGTH]))
        exact_logp = lm.logp(hidden[:-1], tokens[1:])
    results: dict[str, Any] = {"error": {}, "mismatch": {}, "whole_model_logp": {}}
    for name, dtype in DTYPES.items():
        lm = lm.to(dtype)  # exactly: the weights are bfloat16 values
        with torch.no_grad():
            results["error"][name] = errors_in(lm, runs, dtype)
            results["whole_model_logp"][name] = whole_model(lm, tokens, exact_logp)
        results["mismatch"][name] = mismatch_by_kind(lm, tokens, PROMPT)
    with torch.no_grad():
        results["error"]["naive_bfloat16"] = naive_errors(lm, runs)
    return {
        "machine": machine(),
        "model": asdict(CONFIG),
        "tokens": LENGTH,
        "prompt": PROMPT,
        **results,
    }


def tables(results: dict[str, Any]) -> str:
    """The tables of docs/precision.md."""
    errors, mismatch, whole = results["error"], results["mismatch"], results["whole_model_logp"]
    columns = ("float32", "bfloat16", "naive_bfloat16")
    lines = ["| kind | float32 | bfloat16 | bfloat16, naive |", "|---|---|---|---|"]
    for kind in KINDS:
        lines.append("| " + " | ".join([kind, *(shown(errors[column].get(kind)) for column in columns)]) + " |")
    lines += ["", "| kind | float32 | bfloat16 |", "|---|---|---|"]
    for kind in KINDS:
        lines.append("| " + " | ".join([kind, *(shown(mismatch[name][kind]) for name in DTYPES)]) + " |")
    lines += ["", "| log-probability of a token | float32 | bfloat16 |", "|---|---|---|"]
    for what in ("mean", "max"):
        lines.append(f"| {what} error, nats | " + " | ".join(shown(whole[name][what]) for name in DTYPES) + " |")
    return "\n".join(lines) + "\n"


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


BEGIN, END = "<!-- tables: benchmarks/precision.py -->\n", "<!-- end -->\n"


def with_tables(page: str, results: dict[str, Any]) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + tables(results) + END + rest.split(END)[1]


def main() -> None:
    results = measure()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(tables(results))


if __name__ == "__main__":
    main()
