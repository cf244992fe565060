"""What an audit found (launch/audit.py), as a table for people and as JSON for machines."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cispo.types import Verdict
from launch.audit import Audit, AuditOptions, Finding
from launch.run_files import write_atomically
from rewards.probes import KINDS

_COLUMNS = ("tried", "passed", "faults", "timeouts", "errors", "p50 ms", "p99 ms")
_NUM_SHOWN = 10
_SHOWN_CHARACTERS = 100


def table(result: Audit) -> str:
    """What a person reads: a line for each kind of probe, then the faults and the slowest verdicts."""
    head = f"{'probes':<10}" + "".join(f" {name:>8}" for name in _COLUMNS)
    lines = [head, "-" * len(head)]
    for kind in KINDS:
        found = result.of(kind)
        if found:
            counts = list(summary(found).values())
            shown = [f"{count:>8}" for count in counts[:-2]] + [f"{time:>8.2f}" for time in counts[-2:]]
            lines.append(f"{kind:<10} {' '.join(shown)}")
    lines.append(
        f"false negatives {result.false_negative_share:.2%} of right answers, "
        f"false positives {result.false_positive_share:.2%} of the rest; {result.num_prompts} prompts"
        + (f", {result.num_without_gold} of them without a right answer to try" if result.num_without_gold else "")
    )
    lines += _listed("faults", [f for f in result.findings if f.is_fault])
    lines += _listed("not judged", [f for f in result.findings if f.is_unusable])
    lines += _listed("timeouts", [f for f in result.findings if f.verdict == Verdict.GRADER_TIMEOUT])
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> dict[str, float]:
    """Counts and times of some findings, which must not be none."""
    times = sorted(finding.milliseconds for finding in findings)
    return {
        "tried": len(findings),
        "passed": sum(finding.correct for finding in findings),
        "faults": sum(finding.is_fault for finding in findings),
        "timeouts": sum(finding.verdict == Verdict.GRADER_TIMEOUT for finding in findings),
        "errors": sum(finding.is_unusable for finding in findings),
        "p50_ms": statistics.median(times),
        "p99_ms": times[min(len(times) - 1, int(0.99 * len(times)))],
    }


def write_json(result: Audit, options: AuditOptions, path: Path) -> None:
    """The same for machines: shares, counts by kind, every fault with its text."""
    content: dict[str, Any] = {
        "passes": result.passes(options),
        "num_prompts": result.num_prompts,
        "num_without_gold": result.num_without_gold,
        "false_negative_share": result.false_negative_share,
        "false_positive_share": result.false_positive_share,
        "kinds": {kind: summary(found) for kind in KINDS if (found := result.of(kind))},
        "faults": [dataclasses.asdict(f) for f in result.findings if f.is_fault or f.is_unusable],
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def _listed(title: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    lines = [f"{title}: {len(findings)}" + (f", the first {_NUM_SHOWN}:" if len(findings) > _NUM_SHOWN else "")]
    for finding in findings[:_NUM_SHOWN]:
        name = finding.probe.name or finding.probe.kind
        lines.append(
            f"  {finding.prompt_id}: {name}: {finding.verdict}: {_shown(finding.probe.text)}  ({_shown(finding.note)})"
        )
    return lines


def _shown(text: str) -> str:
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
