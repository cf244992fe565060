"""The sandbox's part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox.program import Limits

ISOLATIONS = ("bubblewrap", "landlock", "unsafe")


@dataclass(frozen=True)
class SandboxConfig:
    """How strangers' programs are run.

    Attributes:
        isolation: "bubblewrap", "landlock" where user namespaces are forbidden, or "unsafe": a plain process with
            resource limits only, for trusted programs.
        size: programs that one pool runs at the same time.
        limits: what each program may use.
        bwrap: path or name of the bubblewrap executable.
    """

    isolation: str = "bubblewrap"
    size: int = 1
    limits: Limits = field(default_factory=Limits)
    bwrap: str = "bwrap"

    def __post_init__(self) -> None:
        if self.isolation not in ISOLATIONS:
            raise ValueError(f"sandbox.isolation must be one of {', '.join(ISOLATIONS)}, got {self.isolation!r}")
        if self.size < 1:
            raise ValueError(f"sandbox.size must be at least 1, got {self.size}")
