"""An engine on vLLM in the worker's own process, for models that vLLM serves; the only file that imports it.

Each member of a request is one request to vLLM, which shares their prompt through its cache of prefixes. New weights go
in between two steps; sequences under way go on, and what the old weights computed of them is computed anew, because
vLLM cannot throw away the cache of old prefixes otherwise. vLLM itself records which version sampled each token.

Tested with vLLM 0.32 on a CPU: tests/rollout/test_vllm.py and docs/engines.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cispo.errors import ConfigError, WeightSyncError
from cispo.protocols import WeightStream
from cispo.types import StopReason
from model.weight_files import scan_folder
from rollout.completion_wire import has_rules
from rollout.continuation import Growing
from rollout.engine_config import EngineConfig
from rollout.sampling import Sampling
from rollout.seeding import stable_rng
from rollout.stepped_engine import SteppedEngine, UnderWay

_HOTTEST = 2.0
_REASONS = {"stop": StopReason.STOP, "length": StopReason.LENGTH}


class VllmEngine(SteppedEngine):
    """Samples with vLLM; see `Engine` for the methods.

    Args:
        folder: the model, in Hugging Face layout, of a kind that vLLM serves.
        config: sizes, and `config.vllm`.
        version: of the weights in the folder.

    Raises ConfigError, in one sentence, without vLLM, or when it cannot serve the model.
    """

    def __init__(self, folder: str, config: EngineConfig, *, version: int = 0) -> None:
        if not folder:
            raise ConfigError(
                "engine.kind=vllm needs model.path=<a model folder>, because vLLM builds the model from config.json: a "
                "policy with random weights of model.shape is sampled with engine.kind=hybrid."
            )
        self._vllm, self._llm = _open(folder, config)
        super().__init__(self._llm.model_config.get_vocab_size(), config.max_length, version)
        self._llm.llm_engine.set_weight_version(str(version))
        self._shapes = {name: tuple(entry.shape) for name, entry in scan_folder(Path(folder)).entries.items()}
        self._running: dict[str, Growing] = {}  # by vLLM's id of the request
        self._num_begun = 0

    def load_weights(self, weights: WeightStream, version: int) -> None:
        """Replace the weights between two steps.

        Raises WeightSyncError if names or shapes are not those of the model's folder; the old weights are then kept.
        """
        arrived = dict(weights)
        self._check_weights({name: tuple(array.shape) for name, array in arrived.items()}, version)
        engine = self._llm.llm_engine
        engine.collective_rpc("reload_weights", kwargs={"weights_iterator": list(arrived.items())})
        if not engine.reset_prefix_cache(reset_running_requests=True):
            raise WeightSyncError(f"vLLM keeps prefixes that the weights before version {version} computed.")
        engine.set_weight_version(str(version))
        self._version = version

    def _check_weights(self, found: Mapping[str, tuple[int, ...]], version: int) -> None:
        """vLLM itself takes a part of the weights without a word, and would sample from what nobody trained."""
        faults = [f"{name} is unknown" for name in sorted(found.keys() - self._shapes.keys())]
        faults += [f"{name} is missing" for name in sorted(self._shapes.keys() - found.keys())]
        faults += [
            f"{name} has shape {found[name]} where {shape} is needed"
            for name, shape in self._shapes.items()
            if found.get(name, shape) != shape
        ]
        if faults:
            raise WeightSyncError(
                f"Version {version} cannot be loaded, and version {self._version} is kept: {'; '.join(faults)}."
            )

    def _refuse(self, sampling: Sampling) -> None:
        if has_rules(sampling):
            raise ConfigError(
                f"sampling.thinking_budget and sampling.repetition_tokens are not rules of vLLM; got "
                f"{sampling.thinking_budget} and {sampling.repetition_tokens}: set both to 0."
            )

        if sampling.temperature > _HOTTEST:
            raise ConfigError(f"vLLM samples at temperatures up to {_HOTTEST:g}, got {sampling.temperature:g}.")

    def _begin(self, under_way: UnderWay) -> None:
        for growing in under_way.members.values():
            self._num_begun += 1
            id = f"{self._num_begun}/{growing.request.id}/{growing.member}"
            prompt = self._vllm.TokensPrompt(prompt_token_ids=growing.prompt.tolist())
            self._llm.llm_engine.add_request(id, prompt, self._params(growing))
            self._running[id] = growing

    def _params(self, growing: Growing) -> Any:
        sampling = growing.sampling
        return self._vllm.SamplingParams(
            seed=_seed_of(growing),
            temperature=sampling.temperature,
            top_p=1.0 if sampling.is_greedy else sampling.top_p,
            top_k=0 if sampling.is_greedy else sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )

    def _go_on(self) -> None:
        """One step of vLLM."""
        for output in self._llm.llm_engine.step() if self._running else []:
            growing = self._running.get(output.request_id)
            if growing is None:
                continue  # it was cancelled
            self._add(growing, output.outputs[0])
            if output.finished:
                del self._running[output.request_id]
                self._finish(growing, output.outputs[0])

    def _add(self, growing: Growing, output: Any) -> None:
        token_ids = list(output.token_ids)
        growing.token_ids += token_ids
        growing.logp += [entry[id].logprob for id, entry in zip(token_ids, output.logprobs or [], strict=True)]
        growing.version += [self._version] * len(token_ids)

    def _finish(self, growing: Growing, output: Any) -> None:
        reason = _REASONS.get(output.finish_reason)
        spans = output.weight_versions or []
        versions = [int(span.version) for span in spans for _ in range(span.end - span.start)]
        if versions:  # a step of vLLM may hand out tokens of the one before, so its own record counts
            growing.version[-len(versions) :] = versions
        failed = "" if reason else f"vLLM ended it for the reason {output.finish_reason!r}"
        self._end(growing, reason or StopReason.LENGTH, failed)

    def _drop(self, gone: Sequence[UnderWay]) -> None:
        members = {id(growing) for under_way in gone for growing in under_way.members.values()}
        ids = [name for name, growing in self._running.items() if id(growing) in members]
        self._llm.llm_engine.abort_request(ids)
        for name in ids:
            del self._running[name]


def _seed_of(growing: Growing) -> int:
    """Of one member; another one after each interruption."""
    if growing.token_ids:
        return growing.seed
    return stable_rng("member", growing.request.seed, growing.member).getrandbits(63)


def _open(folder: str, config: EngineConfig) -> tuple[Any, Any]:
    """vLLM, and its engine in this process: so that weights need not cross to another one."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(
            f"engine.kind=vllm needs vLLM ({error}): pip install cispo[vllm], on a CPU in an environment of its own "
            f"(docs/engines.md); or sample with engine.kind=hybrid."
        ) from error
    try:
        llm = vllm.LLM(
            model=folder,
            dtype=config.vllm.dtype,
            max_model_len=config.max_length,
            max_num_seqs=config.num_slots,
            max_num_batched_tokens=max(config.prefill_tokens, config.max_length, config.num_slots),
            gpu_memory_utilization=config.vllm.memory_fraction,
            enforce_eager=config.vllm.enforce_eager,
            logprobs_mode="processed_logprobs",
            skip_tokenizer_init=True,
            generation_config="vllm",
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"vLLM {vllm.__version__} cannot serve {folder}: {_sentence(error)}") from error
    return vllm, llm


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
