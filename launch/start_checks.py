"""What must hold before any process starts, beyond the configuration by itself: this machine, files, libraries, layout.

All checks are made, and all that fail are told at once. What they read on the way (tokenizer, prompts) is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from cispo.errors import CheckpointError, ConfigError, faults_of
from cispo.learner.backends import check_installed
from configs.schema import RunConfig
from launch import build
from launch.build import Data
from launch.explain import Facts, explain
from launch.messages import is_message
from launch.plan import Plan
from launch.wandb_mode import wandb_mode
from model.layout_faults import check_layout
from rewards.custom import CustomReward
from rollout.environments import environment_words


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        data: tokenizer and prompts.
        plan: what it will do.
    """

    data: Data
    plan: Plan


def check_start(config: RunConfig) -> Start:
    """Everything that training needs, or every reason why not: ConfigError, or what the only failing check raised."""
    return _started(config, [*_failures(config, (_check_training, _check_tracking, *MACHINE, *ANYWHERE))])


def plan_here(config: RunConfig) -> Plan:
    """What a run would do: what this very machine lacks for it is among the warnings. Raises as check_start."""
    lacks = [f"not on this machine: {fault}" for error in _failures(config, MACHINE) for fault in _faults_in(error)]
    failed = [*_failures(config, (_check_training, *ANYWHERE))]
    plan = _started(config, failed).plan
    return replace(plan, warnings=[*plan.warnings, *lacks])


def plan_elsewhere(config: RunConfig) -> Plan:
    """What a run on other machines would do; what only they can tell is left to them. Raises as check_start."""
    return _started(config, [*_failures(config, (_check_training, *ANYWHERE))]).plan


def faults_elsewhere(config: RunConfig) -> tuple[str, ...]:
    """What `plan_elsewhere` would raise, as sentences."""
    try:
        plan_elsewhere(config)
    except Exception as error:
        if not is_message(error):
            raise
        return _faults_in(error)
    return ()


def check_machine(config: RunConfig) -> None:
    """Refuse, before any process starts, what this machine cannot do for `cispo eval`."""
    _raise([*_failures(config, (*MACHINE, *ANYWHERE))])


def _started(config: RunConfig, failed: list[Exception]) -> Start:
    """Data and plan, unless something has failed, or fails now; then everything is told."""
    data = None
    if not _lacks_folder(config):  # else it is told already, and whoever opens it would tell it again
        try:
            data = build.read_data(config)
            build.make_sampling(config, data.tokenizer)
        except Exception as error:
            if not is_message(error):
                raise
            failed.append(error)
    _raise(failed)
    assert data is not None
    return Start(data, explain(config, facts_of(config, data)))


def facts_of(config: RunConfig, data: Data) -> Facts:
    """What a plan needs besides the configuration."""
    return Facts(build.make_policy(config, data.tokenizer).config, data.train_rows, len(data.held_out))


def _failures(config: RunConfig, checks: Sequence[Callable[[RunConfig], None]]) -> Iterator[Exception]:
    for check in checks:
        try:
            check(config)
        except Exception as error:
            if not is_message(error):
                raise
            yield error


def _raise(failed: list[Exception]) -> None:
    """One error as it is; several as the faults of one."""
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise ConfigError(*dict.fromkeys(fault for error in failed for fault in _faults_in(error)))


def _faults_in(error: Exception) -> tuple[str, ...]:
    return error.faults if isinstance(error, ConfigError) else (str(error),)


def check_device(key: str, device: str) -> None:
    """Raise ConfigError unless torch can put something on `device`, which the setting `key` names."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an AssertionError is how a CPU build says that it knows no CUDA
        raise ConfigError(
            f"{key}={device} cannot be used here ({str(error).splitlines()[0].rstrip('.')}); use cpu."
        ) from error


def _check_devices(config: RunConfig) -> None:
    devices = (("learner.device", config.learner.device), ("engine.device", config.engine.device))
    if faults := [fault for key, device in devices for fault in faults_of(check_device, key, device)]:
        raise ConfigError(*faults)


def _check_tracking(config: RunConfig) -> None:
    wandb_mode(config.tracking)


def _check_training(config: RunConfig) -> None:
    if config.engine.server.retokenise:
        raise ConfigError(
            "engine.server.retokenise=true is for evaluation only, because the tokens that it makes of a text need not "
            "be those that were sampled; train with a server that returns token ids."
        )


def _check_sandbox(config: RunConfig) -> None:
    if build.needs_sandbox(config):
        build.make_sandbox_pool(config).close()


def _lacks_folder(config: RunConfig) -> bool:
    return bool(config.model.path) and not Path(config.model.path).is_dir()


def _check_model_folder(config: RunConfig) -> None:
    if _lacks_folder(config):
        raise CheckpointError(f"model.path={config.model.path} is not a folder.")


def _check_gpus(config: RunConfig) -> None:
    """Ray would wait for GPUs that this machine does not have until a deadline."""
    import torch

    needed = config.learner_gpus + config.worker_devices
    if config.cluster.kind == "local" and needed > torch.cuda.device_count():
        raise ConfigError(
            f"the learner's {config.learner_gpus} GPUs and the workers' {config.worker_devices} are {needed}, and "
            f"this machine has {torch.cuda.device_count()}; take fewer learner.num_ranks, cluster.num_workers or "
            f"cluster.gpus_per_worker, or join a cluster by cluster=ray."
        )


def _check_layout(config: RunConfig) -> None:
    if config.learner.kind != "megatron" or _lacks_folder(config):
        return
    policy = build.make_policy(config, build.make_tokenizer(config))
    check_layout(policy.config, config.learner.layout, config.learner.num_ranks)


def _check_reward(config: RunConfig) -> None:
    if config.rewards.custom:
        CustomReward(config.rewards.custom)


def _check_engine(config: RunConfig) -> None:
    if config.engine.is_custom:
        build.custom_engine(config.engine.kind)
    if config.engine.kind != "vllm":
        return
    faults = []
    if not config.model.path:
        faults.append(
            "engine.kind=vllm needs model.path=<a model folder>, because vLLM builds the model from config.json; a "
            "policy with random weights of model.shape is sampled with engine.kind=hybrid."
        )
    if config.cluster.kind != "ray" and find_spec("vllm") is None:
        faults.append("engine.kind=vllm needs vLLM; run `pip install 'cispo[vllm]'`, or use engine=hybrid.")
    if faults:
        raise ConfigError(*faults)


def _check_library(config: RunConfig) -> None:
    check_installed(config.learner)


def _check_environment(config: RunConfig) -> None:
    environment_words(config.episode)


MACHINE = (_check_sandbox, _check_devices, _check_library, _check_gpus)
"""What must be had where the command runs."""

ANYWHERE = (_check_model_folder, _check_layout, _check_reward, _check_engine, _check_environment)
"""What is right or wrong wherever it runs."""
