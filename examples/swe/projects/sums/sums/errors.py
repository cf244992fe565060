"""The one error of this package."""

from __future__ import annotations


class SumError(Exception):
    """A text that cannot be read or computed; `position` is the index of the character where it goes wrong."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} (at {position})")
        self.position = position
