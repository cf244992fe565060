"""DAPO's soft overlong penalty: a slope before the token limit instead of a cliff at it.

Source: DAPO (arXiv 2503.14476), equation 13. With limit L and buffer B the penalty of n action tokens is 0 up to
L - B, falls in a straight line to -1 at L, and is -1 for what was cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

from cispo.errors import ConfigError
from cispo.types import StopReason


@dataclass(frozen=True)
class SoftOverlongConfig:
    """From which length a trajectory pays.

    Attributes:
        limit_tokens: action tokens at which the penalty is -1; 0 switches the part off.
        buffer_tokens: the penalty begins this many tokens before the limit.
        repetition_counts_as_truncated: a trajectory that the repetition rule ended pays -1 as one cut off does.
    """

    limit_tokens: int = 0
    buffer_tokens: int = 0
    repetition_counts_as_truncated: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.buffer_tokens <= self.limit_tokens:
            raise ConfigError(
                "soft_overlong needs 0 <= buffer_tokens <= limit_tokens, because the penalty begins buffer_tokens "
                f"before the limit, but got buffer_tokens={self.buffer_tokens} and "
                f"limit_tokens={self.limit_tokens}; lower the buffer or raise the limit."
            )


def overlong_penalty(num_actions: int, stop_reason: StopReason, config: SoftOverlongConfig) -> float:
    """The length part of one trajectory, from -1.0 to 0.0 (DAPO equation 13)."""
    truncated = stop_reason.is_truncated or (
        stop_reason is StopReason.REPETITION and config.repetition_counts_as_truncated
    )
    if truncated:
        return -1.0
    excess = num_actions - (config.limit_tokens - config.buffer_tokens)
    if excess <= 0:
        return 0.0
    # A buffer of 0 is the cliff: nothing up to the limit, -1 beyond it.
    return -min(1.0, excess / config.buffer_tokens) if config.buffer_tokens else -1.0
