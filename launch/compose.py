"""The command line's overrides -> a RunConfig: Hydra composes, the dataclasses check, people get sentences.

Hydra stays in this file. What it composes is turned into a plain dictionary at once.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cispo.errors import CheckpointError, ConfigError
from configs.schema import RunConfig
from configs.strict import from_dict, nearest, to_dict
from launch.config_tree import CONFIGS, GROUPS, choices
from launch.run_files import write_atomically


def compose(overrides: Sequence[str]) -> RunConfig:
    """The configuration of `cispo train <overrides>`. Raises ConfigError with every fault it can find."""
    defaults, keys = to_dict(RunConfig()), [_key(override) for override in overrides]
    faults_by_override = {override: list(_faults_of(override, defaults, keys)) for override in overrides}
    faults = [fault for found in faults_by_override.values() for fault in found]
    try:
        config = from_dict(RunConfig, _composed([o for o in overrides if not faults_by_override[o]], defaults))
    except ConfigError as error:
        faults.extend(error.faults)
    if faults:
        raise ConfigError(*faults)
    return config


def _composed(overrides: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """What Hydra makes of the YAML tree and the overrides, as a plain dictionary."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    logging.getLogger("hydra").setLevel(logging.INFO)  # its debug lines speak of nothing that a user set
    ConfigStore.instance().store(name="schema", node=defaults)
    try:
        with initialize_config_module("configs", version_base="1.3"):
            opened = [part for override in overrides for part in _open_mappings(override)]
            composed = hydra_compose("train", overrides=opened)
        return typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_plain_sentence(error)) from error


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; `load_config` reads an equal one."""
    from omegaconf import OmegaConf

    write_atomically(path, OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was started with, changed by overrides in the same words as those of `compose`.

    A group, such as cluster=inline, is replaced whole by the file of that name.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, so {path.parent} is not the folder of a run.")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {_plain_sentence(error)}") from error
    defaults, keys = to_dict(RunConfig()), [_key(override) for override in overrides]
    faults = [fault for override in overrides for fault in _faults_of(override, defaults, keys)]
    if "experiment" in keys:
        faults.append("an experiment is what a run begins with, so a resumed one cannot take another.")
    if faults:
        raise ConfigError(*faults)
    changed = OmegaConf.create(typing.cast(dict[str, Any], values))
    try:
        for group in dict.fromkeys(key for key in keys if key in GROUPS):
            # Judged below, as part of the run: beside the default experiment a group may make no sense.
            changed[group] = _composed([o for o in overrides if _key(o).split(".")[0] == group], defaults)[group]
        for change in OverridesParser.create().parse_overrides([o for o in overrides if _key(o) not in GROUPS]):
            whole = change.key_or_group in open_mappings()
            if change.is_delete():
                parent, _, key = change.key_or_group.rpartition(".")
                (OmegaConf.select(changed, parent) if parent else changed).pop(key, None)
                continue
            OmegaConf.update(changed, change.key_or_group, change.value(), merge=not whole, force_add=True)
    except (OmegaConfBaseException, HydraException) as error:
        raise ConfigError(_plain_sentence(error)) from error
    config = from_dict(RunConfig, typing.cast(dict[str, Any], OmegaConf.to_container(changed, resolve=True)))
    if config.seed != (seed := from_dict(RunConfig, typing.cast(dict[str, Any], values)).seed):
        raise ConfigError(
            f"a resumed run keeps its seed, because its prompts and samples so far came from it; it is {seed}, "
            f"not {config.seed}. Start a new run for another seed."
        )
    return config


def section(config: RunConfig, package: str = "") -> Any:
    """The part of a configuration at a dotted key, as plain values; "" is all. Raises ConfigError for a wrong key."""
    found: Any = to_dict(config)
    if package and (told := _unknown(package, found)):
        raise ConfigError(f"--package {package} is no key of the configuration: {told}")
    for part in package.split(".") if package else []:
        found = found[part]
    return found


def open_mappings() -> list[str]:
    """Paths of the keys below which anything may be named: mixtures, weights, sets of files."""
    return [path for path, hint in _hints(RunConfig, "") if typing.get_origin(hint) is dict]


def _faults_of(override: str, defaults: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """What is wrong with one override among those of `keys`, by itself; its value is judged with all others later."""
    match = re.fullmatch(r"([+~]{0,2})([^=]+)(=.*)?", override, flags=re.DOTALL)
    if not match or (not match[3] and "~" not in match[1]):
        yield f"an override reads key=value, as in steps=20 or learner.lr=1e-4; got {override!r}."
        return
    if unreadable := _unreadable(override):
        yield unreadable
        return
    key, value = match[2], (match[3] or "")[1:]
    if key in GROUPS:
        yield from _choice_faults(key, value, keys)
        return
    is_free = any(key.startswith(f"{path}.") or key == path for path in open_mappings())
    if not is_free and (told := _unknown(key, defaults)):
        yield f"unknown key {key!r}: {told}"


def _unreadable(override: str) -> str:
    """Why a value is none for one run; "" if it is."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = _plain_sentence(error).split(" See http")[0]
        return f"the value of {override!r} cannot be read ({reason}); put it in quotes."
    if parsed.is_sweep_override():
        return f"{override} asks for several runs, which `cispo train -m` makes; put one text with a comma in quotes."
    return ""


def _choice_faults(group: str, choice: str, keys: Sequence[str]) -> Iterator[str]:
    if choice not in choices(group):
        yield f"{group}={choice}: {nearest(choice, choices(group))}"
    for needed in _needed_by(group, choice):
        if not any(needed == given or needed.startswith(f"{given}.") for given in keys if given not in GROUPS):
            yield f"{group}={choice} needs {needed}=... too."


def _unknown(key: str, values: Mapping[str, Any]) -> str:
    """The nearest right key in place of a wrong one; "" if `values` has it."""
    node: Any = values
    for depth, part in enumerate(parts := key.split(".")):
        if not isinstance(node, Mapping) or part not in node:
            known = list(node) if isinstance(node, Mapping) else []
            where = ".".join(parts[:depth])
            return _with_path(where, nearest(part, known) if known else f"{where} has no keys below it.")
        node = node[part]
    return ""


def _needed_by(group: str, choice: str) -> list[str]:
    """Keys that the file of a choice leaves to the user, as ???; Hydra forgets them where there is a default."""
    from omegaconf import OmegaConf

    path = CONFIGS / group / f"{choice}.yaml"
    where = "" if group == "experiment" else f"{group}."
    return sorted(f"{where}{key}" for key in OmegaConf.missing_keys(OmegaConf.load(path))) if path.is_file() else []


def _with_path(where: str, sentence: str) -> str:
    match = re.fullmatch(r"did you mean '(.+)'\?", sentence)
    return f"did you mean {f'{where}.{match[1]}' if where else match[1]!r}?" if match else sentence


def _key(override: str) -> str:
    return override.split("=", 1)[0]


def _open_mappings(override: str) -> list[str]:
    """Let `task.mixture.mine=1` name a new entry, and `task.mixture={mine: 1}` replace all that were there.

    Hydra asks for a ++ where a key does not exist yet, and would add the entries of a mapping to those of the file.
    """
    key = _key(override)
    if key in open_mappings():
        return [f"~{key}", f"+{override}"]
    return [f"++{override}" if any(key.startswith(f"{path}.") for path in open_mappings()) else override]


def _hints(cls: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(cls).items():
        where = f"{path}.{name}" if path else name
        yield where, hint
        if dataclasses.is_dataclass(hint):
            yield from _hints(hint, where)


def _plain_sentence(error: BaseException) -> str:
    """Hydra's own message without its traceback talk; its cause says more where there is one."""
    told = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    return " ".join(line.strip() for text in told for line in text.splitlines() if line.strip())
