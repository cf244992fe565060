"""Model folders in Hugging Face layout, and the stream of named weights that training and sampling exchange.

One set of names rules for each family (model/checkpoint_names.py), with one matrix per expert; for MiniMax it is the
original layout, which transformers writes too. Reading also accepts the stacked experts that transformers holds in
memory, and skips the decay buffers that it saves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint_names import NAMES, Names, Stream
from model.config import HybridConfig
from model.errors import ModelError
from model.hybrid import HybridLM

MAX_SHARD_BYTES = 5 * 1000**3
CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_DERIVED = ("slope_rate", "query_decay", "key_decay", "diagonal_decay", "inv_freq")


def stream_weights(lm: HybridLM) -> Stream:
    """(name, tensor) of every weight under its checkpoint name, experts one by one. Views: copy before you keep."""
    return _names(lm).in_files((name, parameter.detach()) for name, parameter in lm.named_parameters())


def load_weights(lm: HybridLM, stream: Stream) -> None:
    """Copy a stream of named weights, in either layout, into `lm`, one at a time and in the dtypes that it has.

    Raises ModelError, after the whole stream was read, that lists every missing, unknown and misshapen weight;
    those that fitted have then been written, so a caller that must keep the old weights calls `check_weights` first.
    """
    _match(lm, stream, lambda place, tensor: place.copy_(tensor))


def check_weights(lm: HybridLM, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ModelError if `load_weights` would, without writing any."""
    _match(lm, iter(weights), lambda place, tensor: None)


def fingerprint(lm: HybridLM) -> str:
    """SHA-256, in hex, of the configuration and of every weight with its name: equal for equal models only."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(lm.config), sort_keys=True).encode())
    for name, weight in stream_weights(lm):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _match(lm: HybridLM, stream: Stream, use: Callable[[Tensor, Tensor], object]) -> None:
    """Give `use` every weight of `lm` with the tensor of its name; ModelError for all that do not fit."""
    places = dict(stream_weights(lm))
    missing = set(places)
    faults = []
    for name, tensor in _names(lm).in_files(stream):
        if name.endswith(_DERIVED):
            continue
        if name not in places:
            faults.append(f"{name} is unknown")
        elif places[name].shape != tensor.shape:
            faults.append(f"{name} has shape {tuple(tensor.shape)} where {tuple(places[name].shape)} is needed")
        else:
            use(places[name], tensor)
        missing.discard(name)
    faults += [f"{name} is missing" for name in sorted(missing)]
    if faults:
        raise ModelError("The weights must be those of the configured model, but " + "; ".join(faults) + ".")


def load_pretrained(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> HybridLM:
    """Read a model folder: config.json and safetensors, in one file or sharded.

    All weights take `dtype` but the router's, which are float32. Raises ModelError if a file is missing or
    damaged, or if the weights are not those that the configuration asks for.
    """
    folder = Path(folder)
    config = HybridConfig.from_hf(_read_json(folder / CONFIG_FILE))
    config = dataclasses.replace(config, param_dtype=str(dtype).removeprefix("torch."))
    with torch.random.fork_rng(devices=[]):  # reading a file must not move the caller's random numbers
        lm = HybridLM(config)
    load_weights(lm, _read_tensors(folder))
    return lm.to(device)


def save_pretrained(
    lm: HybridLM,
    folder: str | Path,
    layout: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> None:
    """Write a model folder. `layout` says whose config.json, None the family's own.

    MiniMax has "minimax_m1" (original) and "minimax" (transformers); the weights have the same names in both, because
    transformers writes the original names too. Ring-linear has "bailing_moe_linear". Models larger than
    `max_shard_bytes` are split into files with an index. The token ids go into config.json and generation_config.json,
    where other software looks for them: without `eos_token_id` its generation runs to the length limit.

    A model that is in the folder already is replaced and any other file kept. Whoever is killed while writing leaves
    the old model, the new one, or a folder without config.json, which `load_pretrained` refuses; never a mixture.
    Raises ModelError for an unknown layout and for a token id that the model does not have.
    """
    folder = Path(folder)
    tokens = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    for name, token in tokens.items():
        if token is not None and not 0 <= token < lm.config.vocab_size:
            raise ModelError(f"{name} must be one of the model's {lm.config.vocab_size} token ids, not {token}.")
    config = lm.config.to_hf(lm.config.layouts[0] if layout is None else layout) | tokens
    if layout == "minimax" and lm.config.rotary_dim != lm.config.head_dim:
        warnings.warn(
            f"transformers' minimax ignores rotary_dim={lm.config.rotary_dim} and rotates all "
            f"{lm.config.head_dim} dimensions of a head, so its logits will differ from this model's.",
            stacklevel=2,
        )
    with _replaced_model(folder) as new:
        _write_weights(lm, new, max_shard_bytes)
        _write_json(new / GENERATION_FILE, tokens)
        _write_json(new / CONFIG_FILE, config)


@contextlib.contextmanager
def _replaced_model(folder: Path) -> Iterator[Path]:
    """An empty folder to write a model into, which then takes the place of the one in `folder`.

    It lies inside `folder`, because a folder next to it may be on another disk or closed to us. config.json leaves
    first and comes last: in between there is no model to read.
    """
    new = folder / ".new-model"
    shutil.rmtree(new, ignore_errors=True)  # of a writer that was killed
    new.mkdir(parents=True)
    try:
        yield new
        for pattern in (CONFIG_FILE, GENERATION_FILE, INDEX_FILE, WEIGHTS_FILE, "model-*-of-*.safetensors"):
            for old in folder.glob(pattern):
                old.unlink()
        for file in sorted(new.iterdir(), key=lambda file: file.name == CONFIG_FILE):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_weights(lm: HybridLM, folder: Path, max_shard_bytes: int) -> None:
    """Write the safetensors, and their index if there are several."""
    shards = _plan_shards(lm, max_shard_bytes)
    weights = dict(stream_weights(lm))
    for file, names in shards.items():
        tensors = {name: weights[name].clone(memory_format=torch.contiguous_format) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(weight.numel() * weight.element_size() for weight in weights.values())
        weight_map = {name: file for file, names in shards.items() for name in names}
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _names(lm: HybridLM) -> Names:
    return NAMES[lm.config.family]


def _plan_shards(lm: HybridLM, max_bytes: int) -> dict[str, list[str]]:
    """File name -> weights, in the stream's order, each file at most `max_bytes` (but for one larger weight)."""
    shards: list[list[str]] = [[]]
    room: float = max_bytes
    for name, weight in stream_weights(lm):
        size = math.prod(weight.shape) * weight.element_size()
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def _read_tensors(folder: Path) -> Stream:
    """Every tensor of a model folder, one at a time; reads what the index names, else the only file."""
    if (folder / INDEX_FILE).exists():
        index = _read_json(folder / INDEX_FILE)
        if not isinstance(index.get("weight_map"), dict):
            raise ModelError(f"{folder / INDEX_FILE} must have a weight_map; download or export the model again.")
        files = sorted(set(index["weight_map"].values()))
    else:
        files = [WEIGHTS_FILE]
    for file in files:
        yield from _read_file(folder / file)


def _read_file(path: Path) -> Stream:
    if not path.is_file():
        raise ModelError(f"A model folder needs its weights, but {path} does not exist; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}); download or export the model again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"A model folder needs {path.name}, but {path} does not exist; check the path.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); download or export the model again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(values).__name__}.")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
