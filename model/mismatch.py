"""Where training and sampling differ, by kind of layer.

Both run the same weights on the same tokens by different code: one packed row with gradients here; a prefill, then one
token after the other through the cache there. What is left is rounding, or a fault. Each layer is given the same input
on both sides, that of the training side, so that a difference belongs to the layer in which it shows and is not
inherited from one below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.cache import HybridCache
from model.errors import ModelError
from model.hybrid import HybridLM
from model.moe import Routing

KINDS = ("lightning", "softmax", "moe", "head")
Call = tuple[Tensor, Tensor]
"""What a module was given and what it returned, [T, D] each."""


def mismatch_by_kind(
    lm: HybridLM, tokens_T: Tensor, num_prefill: int, cache: HybridCache | None = None
) -> dict[str, float]:
    """How far apart the two sides are: kind of layer -> relative difference of the worst layer of that kind.

    It is |sampled - trained| / |trained|, in Euclidean norms over all tokens: of a layer's outputs for "lightning",
    "softmax" and "moe", and of the log-probabilities of `tokens_T[1:]` for "head". A kind that the model lacks is
    left out.

    Args:
        lm: the weights.
        tokens_T: int64 [T], one sequence, at least 2 tokens.
        num_prefill: tokens that sampling takes as the prompt; the others are decoded one by one.
        cache: what sampling remembers in; its slot 0 is used and reset. By default one in the weights' dtype.

    Raises ModelError for fewer than 2 tokens or a prompt that is empty or longer than the sequence.
    """
    if len(tokens_T) < 2 or not 1 <= num_prefill <= len(tokens_T):
        raise ModelError(
            f"The two sides can be compared on at least 2 tokens with a prompt of at least 1, not on {len(tokens_T)} "
            f"with a prompt of {num_prefill}."
        )
    if cache is None:
        weight = lm.model.embed_tokens.weight
        cache = HybridCache(lm.config, 1, len(tokens_T), device=weight.device, dtype=weight.dtype)
    trained = _train(lm, tokens_T)
    with torch.inference_mode():
        sampled = _sample(lm, trained, num_prefill, cache)
    differences: dict[str, float] = {}
    for place, wanted in trained.outputs.items():
        kind = place[0]
        error = float((sampled[place].double() - wanted.double()).norm() / wanted.double().norm())
        differences[kind] = max(error, differences.get(kind, 0.0))
    return {kind: differences[kind] for kind in KINDS if kind in differences}


Place = tuple[str, int]
"""Kind and layer; the head counts as one behind the last layer."""


@dataclass
class _Trained:
    """Inputs [T, D] and outputs of every place on the training side."""

    tokens_T: Tensor
    inputs: dict[Place, Tensor] = field(default_factory=dict)
    outputs: dict[Place, Tensor] = field(default_factory=dict)

    def hook(self, place: Place) -> Any:
        """A forward hook that notes what a module was given and what it returned."""

        def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.inputs[place], self.outputs[place] = args[0].detach(), output.detach()

        return note


def _modules(lm: HybridLM) -> dict[Place, nn.Module]:
    """The module of every place but the head's, layer by layer."""
    modules: dict[Place, nn.Module] = {}
    for index, layer in enumerate(lm._layers):
        kind = "lightning" if index in lm.config.lightning_layers else "softmax"
        modules[kind, index] = cast(nn.Module, layer.self_attn)
        modules["moe", index] = cast(nn.Module, layer.block_sparse_moe)
    return modules


def _head(lm: HybridLM) -> Place:
    return "head", lm.config.num_hidden_layers


def _train(lm: HybridLM, tokens_T: Tensor) -> _Trained:
    """The training side: the packed forward pass as the learner makes it."""
    trained = _Trained(tokens_T)
    hooks = [module.register_forward_hook(trained.hook(place)) for place, module in _modules(lm).items()]
    try:
        with torch.enable_grad():
            length = len(tokens_T)
            positions_T = torch.arange(length, device=tokens_T.device)
            borders = torch.tensor([0, length], device=tokens_T.device)
            hidden_TD = lm(tokens_T, positions_T, borders, Routing())[:-1]
            logp_T = lm.logp(hidden_TD, tokens_T[1:])
    finally:
        for hook in hooks:
            hook.remove()
    trained.inputs[_head(lm)], trained.outputs[_head(lm)] = hidden_TD.detach(), logp_T.detach()
    return trained


def _sample(lm: HybridLM, trained: _Trained, num_prefill: int, cache: HybridCache) -> dict[Place, Tensor]:
    """The sampling side: what each place returns for the training side's inputs."""
    tokens_T, slot = trained.tokens_T, torch.zeros(1, dtype=torch.int64, device=trained.tokens_T.device)
    cache.reset([0])
    cache.check_room(slot, torch.full_like(slot, len(tokens_T)))
    borders = torch.tensor([0, num_prefill], device=tokens_T.device)
    row = lm._row(torch.arange(num_prefill, device=tokens_T.device), borders)
    outs: dict[Place, list[Tensor]] = {place: [] for place in trained.outputs}

    def run(first: int, stop: int, mixers: Any) -> None:
        for place, module in _modules(lm).items():
            x = trained.inputs[place][first:stop]
            outs[place].append(module(x) if place[0] == "moe" else mixers(module, x))
        x, targets = trained.inputs[_head(lm)][first:stop], tokens_T[first + 1 : stop + 1]
        outs[_head(lm)].append(torch.log_softmax(lm.logits(x), -1).gather(1, targets[:, None]).squeeze(1))
        cache.length_S[slot] = stop

    run(0, num_prefill, lambda mixer, u: mixer.prefill(u, row, slot, cache))
    for t in range(num_prefill, len(tokens_T)):
        turn = lm._turn(slot, cache)
        run(t, t + 1, lambda mixer, u, turn=turn: mixer.decode(u, turn, cache))
    return {place: torch.cat(parts) for place, parts in outs.items()}
