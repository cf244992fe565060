"""The reward of benchmarks/step.py, for both sides: a number that depends on nothing but the text.

A checksum costs next to nothing, and no group of samples is ever flat, so every completion is learnt from.
"""

from __future__ import annotations

import zlib
from typing import Any


def noise(text: str) -> float:
    """A number in [0, 1) that looks random."""
    return zlib.crc32(text.encode()) / 2**32


def reward(prompt: str, text: str, reference: Any, **info: Any) -> float:
    """What `rewards.custom` asks for."""
    return noise(text)
