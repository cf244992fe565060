"""A sweep's overrides into those of each of its runs, in Hydra's own sweep syntax: `a,b`, choice(), range(), glob().

    expand(["steps=3", "seed=1,2"])        [["steps=3", "seed=1"], ["steps=3", "seed=2"]]
    run_names(jobs)                        ["seed-1", "seed-2"]

Parsing is Hydra's (OverridesParser). What is run, here or on a cluster, is the caller's business.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cispo.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

LONGEST_NAME = 80
"""Characters of a folder's name; a longer one ends in a hash instead."""


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every run: the product of all values, the last key changing fastest, as Hydra's basic sweeper.

    A key that is given twice has its last value or values. Without a sweep there is one run. Raises ConfigError with
    every override that cannot be read or has no end of values.
    """
    by_key: dict[str, list[str]] = {}
    faults: list[str] = []
    with _parser() as parser:
        for text in overrides:
            try:
                override = _parsed(parser, text)
                by_key[override.get_key_element()] = _values(override, text)
            except ConfigError as error:
                faults.extend(error.faults)
    if faults:
        raise ConfigError(*faults)
    # A value that is named twice, perhaps in two spellings, is one run and not two of one name.
    return [list(job) for job in itertools.product(*(dict.fromkeys(values) for values in by_key.values()))]


def run_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """A name for each run of a sweep, safe as a folder's, from the overrides that differ: lr-0.001_seed-2.

    All are different, and none changes with the order of the jobs.
    """
    differing = [dict(job) for job in _differing(jobs)]
    shorts = _short_keys({key for job in differing for key in job})
    plain = ["_".join(f"{shorts[key]}-{value}" for key, value in job.items()) or "run" for job in differing]
    safe = [
        re.sub(r"-+", "-", re.sub(r"[^\w.+-]", "-", name, flags=re.ASCII)).strip(".-")[: LONGEST_NAME + 1]
        for name in plain
    ]
    folded = [name.lower() for name in safe]  # some file systems do not tell a from A
    return [
        name if len(name) <= LONGEST_NAME and folded.count(name.lower()) == 1 else f"{name[:LONGEST_NAME]}-{_hash(job)}"
        for name, job in zip(safe, jobs, strict=True)
    ]


@contextmanager
def _parser() -> Iterator[OverridesParser]:
    """Hydra's parser, which knows the files of each group for glob()."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_module("configs", version_base="1.3"):
        yield OverridesParser.create(GlobalHydra.instance().config_loader())


def _parsed(parser: OverridesParser, text: str) -> Override:
    from hydra.errors import HydraException

    try:
        (override,) = parser.parse_overrides([text])
        return override
    except HydraException as error:
        reason = " ".join(str(error).split()).split(" See http")[0]
        raise ConfigError(f"{text!r} cannot be read ({reason}); put its value in quotes.") from error


def _values(override: Override, text: str) -> list[str]:
    """`text` once for each value of its sweep."""
    from hydra.errors import HydraException

    if not override.is_sweep_override():
        return [text]
    if override.is_interval_sweep():
        raise ConfigError(
            f"{text!r} has no end of values, because interval() is for optimisers that choose among them; name some, "
            f"as in {override.key_or_group}=1,2,4 or {override.key_or_group}=range(1,5)."
        )
    try:
        values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise ConfigError(f"{text!r} cannot be swept over ({error}).") from error
    if not values:
        raise ConfigError(f"{text!r} names no value at all, so there is nothing to run.")
    return values


def _differing(jobs: Sequence[Sequence[str]]) -> list[list[tuple[str, str]]]:
    """(key, value) of those overrides of each job that not all jobs have."""
    everywhere = set(jobs[0]).intersection(*jobs[1:]) if jobs else set()
    return [[_pair(override) for override in job if override not in everywhere] for job in jobs]


def _pair(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _short_keys(keys: set[str]) -> dict[str, str]:
    """The last part of each key where it says which one is meant, else all of it."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last := key.rpartition(".")[2]) == 1 else key for key in keys}


def _hash(job: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(job).encode()).hexdigest()[:8]
