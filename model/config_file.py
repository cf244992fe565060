"""config.json: what a translation between it and the fields of HybridConfig is, and what all of them need.

Each family has one (model/config_minimax.py, model/config_bailing.py); model/config.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.errors import ModelError

if TYPE_CHECKING:
    from model.config import HybridConfig

LIGHTNING, SOFTMAX = 0, 1
"""The kinds of layers in `attn_type_list`: a linear mixer and a softmax mixer, whichever the family has."""


@dataclass(frozen=True)
class ConfigFile:
    """One family's config.json.

    Attributes:
        layouts: the `model_type`s under which it can be written, the family's own first.
        read: the values of a file -> fields of HybridConfig. Raises ModelError for what is missing or not computed.
        write: a configuration and a layout -> the values of a file.
    """

    layouts: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[HybridConfig, str], dict[str, Any]]


def require(values: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise ModelError that names every missing key."""
    missing = [key for key in keys if key not in values]
    if missing:
        raise ModelError(
            f"config.json lacks {', '.join(missing)}, without which no model can be built; "
            "use the config.json that belongs to the weights."
        )


def refuse(values: Mapping[str, Any], is_bad: Mapping[str, bool]) -> None:
    """Raise ModelError that names every key whose value asks for mathematics that this code does not have.

    Whatever is refused would silently change the logits.
    """
    bad = [f"{key} to {values.get(key)!r}" for key, refused in is_bad.items() if refused]
    if bad:
        raise ModelError(
            f"config.json sets {', '.join(bad)}, which this model code does not compute; use a checkpoint without it."
        )


def is_scaled_rotary(values: Mapping[str, Any]) -> dict[str, bool]:
    """What `refuse` needs to refuse stretched rotations under either spelling."""
    return {
        "rope_scaling": values.get("rope_scaling") is not None,
        "rope_parameters": (values.get("rope_parameters") or {}).get("rope_type", "default") != "default",
    }


def rope_theta(values: Mapping[str, Any]) -> float:
    """The base of the rotation under either spelling."""
    return float(values.get("rope_theta") or (values.get("rope_parameters") or {}).get("rope_theta") or 10000.0)


def head_dim(values: Mapping[str, Any]) -> int:
    """The width of a head, which some files leave to be computed."""
    given = values.get("head_dim")
    return int(values["hidden_size"] // values["num_attention_heads"] if given is None else given)


def shared_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that every family reads in the same way."""
    return {
        "rope_theta": rope_theta(values),
        "max_position_embeddings": values.get("max_position_embeddings", 4096),
        "initializer_range": values.get("initializer_range", 0.02),
        "param_dtype": str(values.get("dtype") or values.get("torch_dtype") or "float32"),
    }


def shared_values(config: HybridConfig) -> dict[str, Any]:
    """Values that every family writes in the same way."""
    return {
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": config.param_dtype,
    }
