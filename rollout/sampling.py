"""How one next token is drawn for each of N sequences at once, and with what probability it was drawn.

The random number behind a token is a hash of (seed, member, position), not the next output of a generator. So a
token depends on its request and its logits only, never on what else is in the batch or on how often the engine was
stopped and resumed, and N sequences need one vectorised hash instead of N generators.

Shape suffixes: N sequences, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

LOWEST_TEMPERATURE = 1e-3
"""Below it float32 cannot tell sampling from the argmax; ask for 0 instead."""

BLOCK = 64
"""Tokens per block of the two-level inverse distribution function."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """How one request is sampled and when it ends.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_p: keep the fewest most likely tokens whose probabilities reach it; 1 keeps all. Applied after top_k.
        top_k: keep that many most likely tokens; 0 keeps all.
        max_new_tokens: length limit, forced tokens included.
        stop_token_ids: any of these ends the sequence and is its last token.
        think_open_id: id that opens a think block; -1 if there is none.
        think_close_id: id that closes it; -1 if there is none.
        thinking_budget: new tokens allowed inside think blocks; then the closing token is forced in. 0 is no limit.
        repetition_tokens: end after that many consecutive tokens, each above `repetition_probability`. 0 is off;
            MiniMax-M1 used 3000.
        repetition_probability: see above; it is compared under the distribution sampled from. MiniMax-M1 used 0.99.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()
    think_open_id: int = -1
    think_close_id: int = -1
    thinking_budget: int = 0
    repetition_tokens: int = 0
    repetition_probability: float = 0.99

    @property
    def is_greedy(self) -> bool:
        """Takes the most likely token."""
        return self.temperature == 0

    @property
    def is_truncated(self) -> bool:
        """Some tokens cannot be drawn, so behaviour probabilities differ from the model's own."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1)

    def faults(self, vocab_size: int) -> list[str]:
        """Every value that cannot work with a vocabulary of that size, one sentence each."""
        ids = (*self.stop_token_ids, *((self.think_open_id, self.think_close_id) if self.thinking_budget > 0 else ()))
        outside = [i for i in ids if not 0 <= i < vocab_size]
        rules = [
            (
                self.is_greedy or LOWEST_TEMPERATURE <= self.temperature < math.inf,
                f"temperature must be 0 (greedy) or at least {LOWEST_TEMPERATURE}, got {self.temperature}",
            ),
            (0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}"),
            (self.top_k >= 0, f"top_k must be 0 (off) or positive, got {self.top_k}"),
            (self.max_new_tokens >= 1, f"max_new_tokens must be at least 1, got {self.max_new_tokens}"),
            (self.thinking_budget >= 0, f"thinking_budget must be 0 (off) or positive, got {self.thinking_budget}"),
            (
                self.repetition_tokens >= 0,
                f"repetition_tokens must be 0 (off) or positive, got {self.repetition_tokens}",
            ),
            (
                0 < self.repetition_probability < 1,
                f"repetition_probability must lie in (0, 1), got {self.repetition_probability}",
            ),
            (not outside, f"stop and think token ids must lie in [0, {vocab_size}), got {outside}"),
        ]
        return [sentence for holds, sentence in rules if not holds]


def stream_key(seed: int, member: int) -> int:
    """The key of one sequence's random numbers: int64, from the request's seed and the member's place in its group."""
    key = _mix_int(_mix_int(seed & _MASK_64) + (member + 1) * _GOLDEN)
    return _signed(key)


def uniforms(key_N: Tensor, position_N: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64 [N]: output number `position` of SplitMix64 started at `key`.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = key_N + (position_N + 1) * _signed(_GOLDEN)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 11).double() * 2.0**-53


def _mix_int(z: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    z &= _MASK_64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK_64
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    """The int64 with the same bits."""
    return z - (1 << 64) if z >> 63 else z


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 with its sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


@dataclass(frozen=True)
class SamplingBatch:
    """The sampling parameters of N sequences as columns on the device.

    Attributes:
        scale_N1: float32, what logits are multiplied with: 1 / temperature, and 1 for greedy ones.
        greedy_N: bool.
        top_k_N: int64; 0 keeps all.
        top_p_N: float32; infinite keeps all.
        key_N: int64, see `stream_key`.
    """

    scale_N1: Tensor
    greedy_N: Tensor
    top_k_N: Tensor
    top_p_N: Tensor
    key_N: Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], keys: Sequence[int], device: torch.device | str) -> SamplingBatch:
        """One row per sequence."""
        return cls(
            scale_N1=torch.tensor([[1.0 if s.is_greedy else 1 / s.temperature] for s in samplings], device=device),
            greedy_N=torch.tensor([s.is_greedy for s in samplings], device=device),
            top_k_N=torch.tensor([0 if s.is_greedy else s.top_k for s in samplings], device=device),
            top_p_N=torch.tensor(
                [s.top_p if s.is_truncated and s.top_p < 1 else math.inf for s in samplings], device=device
            ),
            key_N=torch.tensor(keys, dtype=torch.int64, device=device),
        )

    def put(self, index_N: Tensor, rows: SamplingBatch) -> None:
        """Overwrite the rows at `index_N`."""
        for field in fields(self):
            getattr(self, field.name)[index_N] = getattr(rows, field.name)

    def take(self, index_N: Tensor) -> Drawing:
        """The rows at `index_N`, ready to draw from. Asks the device once what the rows need, so call it only
        when the batch's composition changes."""
        rows = SamplingBatch(*(getattr(self, field.name)[index_N] for field in fields(self)))
        cut_N = (rows.top_k_N > 0) | (rows.top_p_N < math.inf)
        num_greedy, num_cut = torch.stack((rows.greedy_N.sum(), cut_N.sum())).tolist()
        return Drawing(
            rows=rows,
            any_greedy=num_greedy > 0,
            all_greedy=num_greedy == len(index_N),
            cut_rows=cut_N.nonzero()[:, 0] if num_cut else None,
        )


@dataclass(frozen=True)
class Drawing:
    """The parameters of one batch, and what of the work it can skip."""

    rows: SamplingBatch
    any_greedy: bool
    all_greedy: bool
    cut_rows: Tensor | None

    def draw(self, logits_NV: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
        """Draw one token for each row.

        Args:
            logits_NV: float32; overwritten.
            position_N: int64, how many new tokens the sequence had before this one.

        Returns:
            token_N, int64, and logp_N, float32: its log-probability under the distribution that was drawn from,
            i.e. after temperature and, where they are on, top-k and top-p, renormalised. Greedy: at temperature 1.
            logp is NaN where the logits hold NaN, +inf or no finite value; the token there is arbitrary.
        """
        scaled_NV = logits_NV.sub_(logits_NV.amax(dim=-1, keepdim=True)).mul_(self.rows.scale_N1)
        if self.cut_rows is not None:
            top_k, top_p = self.rows.top_k_N[self.cut_rows], self.rows.top_p_N[self.cut_rows]
            scaled_NV[self.cut_rows] = truncated(scaled_NV[self.cut_rows], top_k, top_p)
        weight_NV = scaled_NV.exp()
        if self.all_greedy:
            token_N = scaled_NV.argmax(dim=-1)
        else:
            token_N = inverse_cdf(weight_NV, uniforms(self.rows.key_N, position_N))
            if self.any_greedy:
                token_N = torch.where(self.rows.greedy_N, scaled_NV.argmax(dim=-1), token_N)
        logp_N = scaled_NV.gather(1, token_N[:, None])[:, 0] - weight_NV.sum(dim=-1).log()
        return token_N, logp_N


def truncated(scaled_NV: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """`scaled_NV` with -inf where top-k, then top-p on what top-k left, forbid the token. Ties keep the lower id."""
    sorted_NV, order_NV = scaled_NV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(scaled_NV.shape[-1], device=scaled_NV.device)
    limit_N1 = torch.where(top_k_N > 0, top_k_N, scaled_NV.shape[-1])[:, None]
    sorted_NV = sorted_NV.masked_fill(rank_V >= limit_N1, -math.inf)
    p_NV = sorted_NV.softmax(dim=-1, dtype=torch.float64)
    # A token stays while the more likely ones have not yet reached top_p; so the first always stays.
    reached_NV = p_NV.cumsum(dim=-1) - p_NV >= top_p_N[:, None]
    return torch.empty_like(scaled_NV).scatter_(1, order_NV, sorted_NV.masked_fill(reached_NV, -math.inf))


def inverse_cdf(weight_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The token at quantile `uniform_N` of the distribution proportional to `weight_NV`: int64 [N].

    Two levels, blocks of tokens and then tokens of the block, both summed in float64: cheaper than a running sum
    over the vocabulary, and the tail of a large vocabulary is not lost to rounding. Never gives a token of weight 0.
    """
    vocab_size = weight_NV.shape[-1]
    if vocab_size <= BLOCK:
        return _find(weight_NV, uniform_N)[0]
    padding = -vocab_size % BLOCK
    if padding:
        weight_NV = torch.nn.functional.pad(weight_NV, (0, padding))
    weight_NBb = weight_NV.view(len(weight_NV), -1, BLOCK)
    block_N, within_N = _find(weight_NBb.sum(dim=-1), uniform_N)
    row_N = torch.arange(len(weight_NV), device=weight_NV.device)
    token_N, _ = _find(weight_NBb[row_N, block_N], within_N)
    # Only a row of NaN can point into the padding.
    return (block_N * BLOCK + token_N).clamp_(max=vocab_size - 1)


def _find(weight_NK: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """The entry in which the quantile falls, int64 [N], and how far into that entry, float64 [N] in [0, 1)."""
    cdf_NK = weight_NK.double().cumsum(dim=-1)
    target_N1 = uniform_N[:, None] * cdf_NK[:, -1:]
    entry_N1 = torch.searchsorted(cdf_NK, target_N1, right=True).clamp_(max=weight_NK.shape[-1] - 1)
    width_N1 = weight_NK.gather(1, entry_N1).double()
    within_N1 = 1 - (cdf_NK.gather(1, entry_N1) - target_N1) / width_N1
    return entry_N1[:, 0], within_N1.clamp_(0, 1 - 2.0**-53)[:, 0]
