"""Attention on CPUs by torch's own fused kernel, in the form that also tells the sums behind its result.

Two parts of the keys can be attended apart and joined afterwards if the logarithm of each part's sum of exponentials
is known; `F.scaled_dot_product_attention` runs this kernel and keeps the sums to itself. The operator that returns
them is not public, so this file alone names it, and where a build lacks it the callers make the scores themselves.

It holds at most 256 by 512 scores a thread and reads keys where they lie. Nanoseconds per score, one thread of an AMD
EPYC, 2,048 queries over 10,000 keys, beside our own blocks: head width 16: 1.6 and 3.1, 32: 2.4 and 4.1, 64: 4.1 and
5.9, 128: 8.8 and 12.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SCORES = 1 << 16
"""Scores of a sequence from which the kernel is never slower. Sequences go to it one by one, some 70 us each: eight of
16 tokens take 3 times as long as in one plain product, eight of 128 tokens 0.65 to 0.9 times as long."""

MAX_WIDTH, FEW_ROWS, MANY_ROWS = 64, 32, 768
"""Wider heads gain with few rows, which are one block of the kernel, and with many, from which on it takes its largest
blocks, but not between: at width 128 over 100,000 keys 128 rows take 1.2 to 1.3 times as long as in our own blocks."""


def is_available() -> bool:
    """This build of torch has the operator."""
    return hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def pays(q: Tensor, k: Tensor) -> bool:
    """The kernel takes queries [n, K, g, L, d] over keys [n, K, M, d], and is faster than other ways.

    It has a backward pass, but not through the sums: whoever wants gradients must go another way.
    """
    rows, width = q.shape[2] * q.shape[3], q.shape[4]
    return (
        _AVAILABLE
        and q.device.type == "cpu"
        and q.dtype == k.dtype == torch.float32
        and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad))
        and q.shape[1] * rows * k.shape[2] >= MIN_SCORES
        and (width <= MAX_WIDTH or rows <= FEW_ROWS or rows >= MANY_ROWS)
    )


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of each query's sum of exponentials.

    Args:
        q: float32 [K, g, L, d], scaled.
        k, v: float32 [K, M, d], any strides in the first two dimensions.
        causal: query i sees keys 0 .. i, as many as there are; otherwise every query sees every key.

    Returns:
        float32 [K, g, L, d] and [K, g, L].
    """
    heads, groups, length, _ = q.shape
    if causal:  # the heads of a group read the same keys through a stride of 0
        k, v = (x[:, None].expand(-1, groups, -1, -1) for x in (k, v))
    else:  # all rows of a group at once: larger products
        q, k, v = q.flatten(1, 2)[None], k[None], v[None]
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=1.0)
    return out.reshape(heads, groups, length, -1), log_sum.reshape(heads, groups, length)


_AVAILABLE = is_available()
