"""What `cispo sandbox check` prints: what the machine can do, which canaries each tier holds, what to ask for."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.capabilities import Fact, facts
from sandbox.config import SandboxConfig
from sandbox.errors import IsolationError
from sandbox.program import Limits
from sandbox.sandbox import CHECK_LIMITS, Sandbox
from sandbox.self_test import check_isolation, check_watching, try_canaries

TIERS = ("bubblewrap", "landlock")
"""The tiers that this machine itself can hold, the stronger first."""

_HELD = {False: "held", True: "GOT OUT"}


@dataclass(frozen=True)
class TierReport:
    """What one tier came to.

    Attributes:
        name: the tier.
        canaries: by name, whether it got out; empty when they could not be run.
        problem: why the tier does not hold, or None when it does.
    """

    name: str
    canaries: dict[str, bool]
    problem: str | None


def try_tier(name: str, bwrap: str = "bwrap", limits: Limits = CHECK_LIMITS) -> TierReport:
    """Let every canary of a tier try."""
    canaries: dict[str, bool] = {}
    try:
        sandbox = Sandbox(limits, isolation=name, bwrap=bwrap)
        canaries = try_canaries(sandbox.run, name)
        check_isolation(sandbox.run, name, bwrap)
        check_watching(sandbox.run)
    except IsolationError as error:
        return TierReport(name, canaries, str(error))
    return TierReport(name, canaries, None)


def check_report(config: SandboxConfig) -> tuple[str, bool]:
    """The report as text, and whether the configured tier holds."""
    found = facts(config.bwrap)
    tiers = [try_tier(name, config.bwrap) for name in TIERS]
    sections = [_machine(found), _canaries(tiers), _tiers(tiers, config.isolation), _asking(found, tiers)]
    holds = any(tier.name == config.isolation and tier.problem is None for tier in tiers)
    return "\n\n".join(section for section in sections if section), holds


def _machine(found: list[Fact]) -> str:
    return "\n".join(["this machine", *(f"  {fact.name:<18} {fact.value}" for fact in found)])


def _canaries(tiers: list[TierReport]) -> str:
    names = list(dict.fromkeys(name for tier in tiers for name in tier.canaries))
    lines = [f"{'canaries: a program tries to':<44}" + "".join(f"{tier.name:<14}" for tier in tiers)]
    for name in names:
        told = ["not run" if name not in tier.canaries else _HELD[tier.canaries[name]] for tier in tiers]
        lines.append(f"  {name:<42}" + "".join(f"{word:<14}" for word in told))
    return "\n".join(line.rstrip() for line in lines)


def _tiers(tiers: list[TierReport], configured: str) -> str:
    lines = [f"tiers (sandbox.isolation={configured} is configured; none is ever taken in place of another)"]
    told = {tier.name: "holds" if tier.problem is None else f"does not hold: {tier.problem}" for tier in tiers}
    told |= {"remote": "programs run on other machines, which check themselves", "unsafe": "no wall, so it never holds"}
    lines += [f"{'->' if name == configured else '  '} {name:<14}{what}" for name, what in told.items()]
    return "\n".join(lines)


def _asking(found: list[Fact], tiers: list[TierReport]) -> str:
    asks = [f"  {fact.name}: {fact.ask}" for fact in found if fact.ask]
    if not asks and all(tier.problem is None for tier in tiers):
        return ""
    return "\n".join(["what to ask the administrator for", *asks])
