"""Models with weights worth comparing, and transformers' `minimax` with the same weights, its two defects repaired.

Without a CUDA device Triton's kernels run in its interpreter, which must be said before triton is imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from model import HybridConfig, HybridLM

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

LOGIT_SCALE = 5.0
"""Root mean square of the logits at which rounding is judged: that of a trained model, whose text is far from noise."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def random_tokens(config: HybridConfig, length: int, seed: int = 0) -> Tensor:
    """int64 [length]."""
    return torch.randint(0, config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def make_lm(config: HybridConfig, seed: int = 0) -> HybridLM:
    """Random weights in which nothing is neutral: norms away from 1, logits of root mean square LOGIT_SCALE."""
    torch.manual_seed(seed)
    lm = HybridLM(config)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
        tokens = random_tokens(config, 64, seed)
        logits = lm.logits(lm(tokens, torch.arange(64), torch.tensor([0, 64])))
        lm.lm_head.weight *= LOGIT_SCALE / logits.square().mean().sqrt()
    return lm


@dataclass
class Native:
    """transformers' model that computes what `lm` does, and how to compare the two.

    Attributes:
        model: MiniMaxForCausalLM.
        order: the place in our heads of each dimension of its query and key heads (repair 2).
    """

    model: Any
    order: Tensor

    def name(self, ours: str) -> str:
        """Its name of one of our parameters."""
        return ours.replace(".block_sparse_moe.", ".mlp.")

    def rows(self, name: str, tensor: Tensor) -> Tensor:
        """Our weight or gradient in the order of its rows: those of queries and keys are permuted in each head."""
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return tensor
        return tensor.view(-1, len(self.order), tensor.shape[1])[:, self.order].flatten(0, 1)


def partial_rotary_order(rotary_dim: int, head_dim: int) -> Tensor:
    """Repair 2: with the rows of a head in this order, rotating the whole head by `partial_rotary_frequencies` rotates
    the first `rotary_dim` dimensions of ours.

    transformers pairs i with i + head_dim / 2, MiniMax i with i + rotary_dim / 2.
    """
    half, middle = rotary_dim // 2, head_dim // 2
    return torch.tensor(
        [*range(half), *range(2 * half, half + middle), *range(half, 2 * half), *range(half + middle, head_dim)]
    )


def partial_rotary_frequencies(rotary_dim: int, head_dim: int, theta: float) -> Tensor:
    """float32 [head_dim / 2]: MiniMax's frequencies for the pairs that turn, 0 for those that stay."""
    frequency = torch.zeros(head_dim // 2)
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / max(rotary_dim, 1)
    frequency[: rotary_dim // 2] = (theta**-exponent).float()
    return frequency


def make_native(lm: HybridLM, *, repair_rotary: bool = True) -> Native:
    """transformers' model with the weights of `lm`."""
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    config = lm.config
    model = MiniMaxForCausalLM(MiniMaxConfig(**config.to_hf("minimax")))
    rotary_dim = config.rotary_dim if repair_rotary else config.head_dim
    native = Native(model, partial_rotary_order(rotary_dim, config.head_dim))
    own = dict(lm.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(native.rows(name, own[name.replace(".mlp.", ".block_sparse_moe.")]))
    model.model.rotary_emb.inv_freq = partial_rotary_frequencies(rotary_dim, config.head_dim, config.rope_theta)
    return native


def fixed_cache(config: HybridConfig) -> Any:
    """Repair 1: transformers' cache that asks the first softmax layer, not layer 0, how many tokens it holds."""
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    first = config.softmax_layers[0]

    class FixedCache(MiniMaxCache):
        def get_seq_length(self, layer_idx: int = 0) -> int:
            return super().get_seq_length(first)

        def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
            return super().get_mask_sizes(query_length, first)

    return FixedCache()


class _Oracle:
    """The functions above, for tests, which cannot import each other."""

    make_lm = staticmethod(make_lm)
    random_tokens = staticmethod(random_tokens)
    make_native = staticmethod(make_native)
    fixed_cache = staticmethod(fixed_cache)
    logit_scale = LOGIT_SCALE


@pytest.fixture(scope="session")
def oracle() -> type[_Oracle]:
    return _Oracle
