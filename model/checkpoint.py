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
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.checkpoint_names import NAMES, Names, Stream
from model.config import HybridConfig
from model.errors import ModelError
from model.hybrid import HybridLM
from model.weight_files import INDEX_FILE, WEIGHTS_FILE, WeightFiles, read_json, scan_folder, write_tensors

MAX_SHARD_BYTES = 5 * 1000**3
CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
NATIVE_NORM_EPS = 1e-6
_DERIVED = ("slope_rate", "query_decay", "key_decay", "diagonal_decay", "inv_freq")


def stream_weights(lm: HybridLM, parameters: Iterable[tuple[str, Tensor]] | None = None) -> Stream:
    """(name, tensor) of every weight under its checkpoint name, experts one by one. Views: copy before you keep.

    `parameters`, by their names in `lm`, are streamed in place of its own, if given.
    """
    found = lm.named_parameters() if parameters is None else parameters
    return _names(lm.config).in_files((name, parameter.detach()) for name, parameter in found)


def load_weights(lm: HybridLM, stream: Stream) -> None:
    """Copy a stream of named weights, in either layout, into `lm`, one at a time and in the dtypes that it has.

    Raises ModelError, after the whole stream was read, that lists every missing, unknown and misshapen weight;
    those that fitted have then been written, so a caller that must keep the old weights calls `check_weights` first.
    """
    places = dict(stream_weights(lm))
    place_weights(lm, stream, lambda name, tensor: places[name].copy_(tensor))


def place_weights(lm: HybridLM, stream: Stream, put: Callable[[str, Tensor], object]) -> None:
    """Call `put` with every weight of a stream under its checkpoint name; `lm`, whose weights may be on "meta", says
    which there must be. Raises ModelError as `load_weights` does.
    """
    _refuse(_faults(lm, stream, put))


def check_weights(lm: HybridLM, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ModelError if `load_weights` would, without writing any."""
    _refuse(_faults(lm, iter(weights), lambda name, tensor: None))


def fingerprint(lm: HybridLM) -> str:
    """SHA-256, in hex, of the configuration and of every weight with its name: equal for equal models only."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(lm.config), sort_keys=True).encode())
    for name, weight in stream_weights(lm):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _faults(lm: HybridLM, stream: Stream, use: Callable[[str, Tensor], object]) -> list[str]:
    """Give `use` every weight of `lm` with its name in files; what does not fit, a clause for each."""
    places = dict(stream_weights(lm))
    missing = set(places)
    faults = []
    for name, tensor in _names(lm.config).in_files(stream):
        if name.endswith(_DERIVED):
            continue
        if name not in places:
            faults.append(f"{name} is unknown")
        elif places[name].shape != tensor.shape:
            faults.append(f"{name} has shape {tuple(tensor.shape)} where {tuple(places[name].shape)} is needed")
        else:
            use(name, tensor)
        missing.discard(name)
    return faults + [f"{name} is missing" for name in sorted(missing)]


def _refuse(faults: list[str], where: str | Path = "") -> None:
    if faults:
        weights = f"The weights in {where}" if where else "The weights"
        raise ModelError(f"{weights} must be those of the configured model, but {'; '.join(faults)}.")


def load_pretrained(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> HybridLM:
    """Read a model folder: config.json and safetensors, in one file or sharded.

    All weights take `dtype` but the router's, which are float32. They go one by one to `device`, so memory peaks at
    the model and one tensor of its files.

    Raises ModelError if there is no configuration; then, before a weight is read, with everything that is wrong with
    files and tensors together: missing, damaged and cut off files, an index that is not theirs, missing, unknown and
    misshapen tensors and those of a dtype that no weight has; then with the names of all weights that are not finite.
    """
    folder = Path(folder)
    config = dataclasses.replace(read_config(folder), param_dtype=str(dtype).removeprefix("torch."))
    lm = unset_model(config, device)
    load_weights(lm, stream_folder(lm, folder))
    _refuse(
        [f"{name} has numbers that are not finite" for name, weight in stream_weights(lm) if not _finite(weight)],
        folder,
    )
    return lm


def read_config(folder: str | Path) -> HybridConfig:
    """The configuration of a model folder. Raises ModelError if there is none, or none that can be built."""
    return HybridConfig.from_hf(read_json(Path(folder) / CONFIG_FILE))


def unset_model(config: HybridConfig, device: str | torch.device = "cpu") -> HybridLM:
    """A model for weights to be loaded into: its own are whatever the memory held."""
    with torch.device(device), _Unset():
        return HybridLM(config)


def stream_folder(lm: HybridLM, folder: str | Path, is_wanted: Callable[[str], bool] = lambda name: True) -> Stream:
    """(name in the files, tensor) of a folder's weights, which must be those of `lm`; that may be on "meta".

    Tensors of which `is_wanted` wants no checkpoint name are not read, but on "meta". Raises ModelError for everything
    wrong with files and headers together, before a weight is read.
    """
    files = scan_folder(Path(folder))
    _refuse(_file_faults(lm, files), folder)
    for name, entry in files.entries.items():
        if name.endswith(_DERIVED):
            continue
        is_read = any(is_wanted(each) for each in _names_in(name, lm))
        yield name, entry.read() if is_read else torch.empty(entry.shape, device="meta")


class _Unset(TorchFunctionMode):
    """New weights stay as memory happens to be: files replace them, so random numbers would be a waste, and drawing
    them would move the caller's. (Building on "meta" instead takes 153 MB and 5 s of imports for its `normal_`.)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


_FILLS = {Tensor.normal_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}


def _file_faults(lm: HybridLM, files: WeightFiles) -> list[str]:
    """All faults that the headers show. What cannot be read is one already, so it is not called missing, too."""

    def stand_ins() -> Stream:
        for name, entry in files.entries.items():
            yield name, torch.empty(entry.shape, device="meta")

    excused = {name for stacked in files.unreadable for name in _names_in(stacked, lm)}
    faults = _faults(lm, stand_ins(), lambda name, tensor: None)
    hidden = {f"{name} is missing" for name, _ in stream_weights(lm) if not files.is_complete or name in excused}
    return files.faults + [fault for fault in faults if fault not in hidden]


def _names_in(name: str, lm: HybridLM) -> Iterator[str]:
    """The checkpoint names of a tensor of unknown shape: those of all experts if it is a stack."""
    stack = torch.empty(lm.config.num_local_experts, 2, 1, device="meta")
    return (each for each, _ in _names(lm.config).in_files(iter([(name, stack)])))


def _finite(weight: Tensor) -> bool:
    least, largest = torch.aminmax(weight)
    return bool(torch.isfinite(least) & torch.isfinite(largest))


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
    `max_shard_bytes` are split into files with an index; whatever it is, memory holds one tensor beside the model. The
    token ids go into config.json and generation_config.json, where other software looks for them: without
    `eos_token_id` its generation runs to the length limit.

    A model that is in the folder already is replaced and any other file kept. Whoever is killed while writing leaves
    the old model, the new one, or a folder without config.json, which `load_pretrained` refuses; never a mixture.
    Raises ModelError for an unknown layout and for a token id that the model does not have.
    """
    write_pretrained(
        lm.config,
        stream_weights(lm),
        folder,
        layout,
        max_shard_bytes,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def write_pretrained(
    config: HybridConfig,
    weights: Stream,
    folder: str | Path,
    layout: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **tokens: int | None,
) -> None:
    """`save_pretrained` of weights that come one by one, whole and under their checkpoint names.

    Those of one file are held until it is written. The stream is not read if the settings are refused.
    """
    folder = Path(folder)
    for name, token in tokens.items():
        if token is not None and not 0 <= token < config.vocab_size:
            raise ModelError(f"{name} must be one of the model's {config.vocab_size} token ids, not {token}.")
    described = config.to_hf(config.layouts[0] if layout is None else layout) | tokens
    differences = _native_differences(config) if layout == "minimax" else []
    if differences:
        warnings.warn(
            f"transformers' minimax {'; it '.join(differences)}; so its logits will differ from this model's "
            "(docs/transformers.md).",
            stacklevel=3,
        )
    with _replaced_model(folder) as new:
        _write_weights(weights, new, max_shard_bytes)
        _write_json(new / GENERATION_FILE, tokens)
        _write_json(new / CONFIG_FILE, described)


def _native_differences(config: HybridConfig) -> list[str]:
    """What transformers' `minimax` computes otherwise than this model and does not say; measured in tests."""
    heads = config.num_attention_heads
    differences = []
    if config.rotary_dim != config.head_dim:
        differences.append(
            f"ignores rotary_dim={config.rotary_dim} and rotates all {config.head_dim} dimensions of a head"
        )
    if heads & (heads - 1):
        differences.append(f"has other slopes for {heads} heads, which are no power of two")
    if config.lightning_norm_eps != NATIVE_NORM_EPS:
        differences.append(f"fixes the lightning norm's eps at {NATIVE_NORM_EPS}, not {config.lightning_norm_eps}")
    if not config.postnorm:
        differences.append("takes the residual after the norm, whatever postnorm says")
    return differences


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


def _write_weights(weights: Stream, folder: Path, max_bytes: int) -> None:
    """Write the safetensors in the stream's order, each file at most `max_bytes` (but for one larger weight).

    How many files there are, which is part of their names, is known at the end.
    """
    files: list[list[str]] = []
    total = 0
    for shard in _shards(weights, max_bytes):
        write_tensors(folder / f"{len(files)}.part", shard)
        files.append(list(shard))
        total += sum(map(_num_bytes, shard.values()))
    names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [WEIGHTS_FILE]
    for i, name in enumerate(names):
        (folder / f"{i}.part").rename(folder / name)
    if len(files) > 1:
        weight_map = {weight: name for name, weights_in in zip(names, files, strict=True) for weight in weights_in}
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(weights: Stream, max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    room: float = max_bytes
    for name, weight in weights:
        if _num_bytes(weight) > room and shard:
            yield shard
            shard, room = {}, max_bytes
        shard[name] = weight
        room -= _num_bytes(weight)
    yield shard


def _num_bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


def _names(config: HybridConfig) -> Names:
    return NAMES[config.family]


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
