"""From a RunConfig to the parts of a run. The functions that take plain values only are called where a part will live,
often in another process; so they import what they need themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cispo.errors import ConfigError
from cispo.sft import Demonstration
from cispo.types import Prompt
from configs.schema import RunConfig
from model import Tokenizer
from rollout.engine_protocol import Engine
from rollout.environment import ObservationEncoder
from rollout.environments import environment_words, make_environment
from rollout.prompt_files import PromptLimit, ReferenceCheck
from rollout.prompts import check_tasks, demonstration_source, eval_sets, prompt_source, read_file_sets, task_words
from rollout.sampling import Sampling
from rollout.seeding import stable_rng

if TYPE_CHECKING:
    from cispo.learner.policy import Policy
    from cispo.learner.ranks import Ranks
    from cispo.learner.shared import SharedLearner
    from cispo.protocols import PromptSource
    from launch.sandbox_actors import SandboxActors
    from rewards.reward import Rewards
    from rollout.episodes import Setting
    from rollout.worker import RolloutWorker
    from sandbox import ProgramPool


@dataclass(frozen=True)
class Data:
    """What a run reads before any process starts: so a wrong path or a bad file costs nothing.

    Attributes:
        tokenizer: of the policy.
        prompts: the endless training stream.
        held_out: the prompts of evaluation, of every task.
        train_rows: number of training prompts of each set of files.
    """

    tokenizer: Tokenizer
    prompts: PromptSource
    held_out: Sequence[Prompt]
    train_rows: Mapping[str, int]


def read_data(config: RunConfig) -> Data:
    """Tokenizer and prompts, each file read once.

    Raises DataError, ConfigError or ModelError where they cannot be read, or could not be used when they are drawn.
    """
    tokenizer = make_tokenizer(config)
    limit = prompt_limit(config)
    check_tasks(config.task, tokenizer, limit)
    file_sets = read_file_sets(config.task, tokenizer, limit=limit, check_reference=make_reference_check(config))
    prompts = prompt_source(config.task, tokenizer, config.seed, file_sets=file_sets, limit=limit)
    # The seed of evaluation is fixed, so that runs with different seeds can be compared.
    held_out = eval_sets(
        config.task, tokenizer, config.evaluation.num_prompts, seed=0, file_sets=file_sets, limit=limit
    )
    train_rows = {name: len(rows.train) for name, rows in file_sets.items()}
    return Data(tokenizer, prompts, [prompt for prompts in held_out.values() for prompt in prompts], train_rows)


def prompt_limit(config: RunConfig) -> PromptLimit:
    """The longest prompt that the engine takes, whose length counts prompt and window, or that the task allows."""
    window = config.longest_window
    name = "episode.max_tokens" if config.episode.max_tokens else "engine.max_length"
    engine = PromptLimit(
        config.longest_trajectory - window,
        f"{name}={config.longest_trajectory} less sampling.max_new_tokens={window}",
    )
    return min(config.task.prompt_limit, engine, key=lambda limit: limit.num_tokens)


def make_reference_check(config: RunConfig) -> ReferenceCheck:
    """What a row's reference must be for the verifier of its task; a custom reward takes any."""
    from rewards import code_tests, logic, math_answer, repository_tests

    checks = {
        "math": math_answer.check_reference,
        "code": code_tests.check_reference,
        "logic": logic.check_reference,
        "repository": repository_tests.check_reference,
    }

    def check(task: str, reference: Any) -> None:
        verifier = config.rewards.verifier_of(task)
        if verifier in checks:
            checks[verifier](reference)

    return check


def make_tokenizer(config: RunConfig) -> Tokenizer:
    """That of the pretrained folder, or bytes with a token of its own for each of the tasks' words."""
    if config.model.path:
        return Tokenizer.load(config.model.path)
    words = (*task_words(config.task), *environment_words(config.episode))
    return Tokenizer.bytes_and_words(tuple(dict.fromkeys(words)))


def make_policy(config: RunConfig, tokenizer: Tokenizer) -> Policy:
    """The policy at the start of the run: the pretrained one, or random weights from the run's seed."""
    from cispo.learner.policy import Policy
    from model.checkpoint import read_config

    if config.model.path:
        return Policy(read_config(config.model.path), config.model.path)
    shape = dataclasses.replace(config.model.shape, vocab_size=tokenizer.vocab_size)
    return Policy(shape, seed=stable_rng("weights", config.seed).getrandbits(63))


def make_learner(config: RunConfig, ranks: Ranks) -> SharedLearner:
    """One rank of the learner, with its policy."""
    from cispo.learner.backends import make_learner

    return make_learner(make_policy(config, make_tokenizer(config)), config.learner, ranks)


def make_worker(config: RunConfig, sandboxes: SandboxActors | None = None, name: str = "rollout") -> RolloutWorker:
    """A rollout worker: engine, scorers, and a policy that waits for its first weights.

    Args:
        config: the run.
        sandboxes: the run's sandbox actors; None gives the worker a pool of its own.
        name: of the worker, for messages.
    """
    import torch

    from rollout.worker import RolloutWorker

    torch.set_num_threads(config.cluster.num_threads)
    tokenizer = make_tokenizer(config)
    engine = make_engine(config, tokenizer)
    open_pool = functools.cache(lambda: make_worker_pool(config, sandboxes))
    setting = make_setting(config, tokenizer, open_pool)
    rewards, sampling = make_rewards(config, sandboxes, open_pool=open_pool), make_sampling(config, tokenizer, setting)
    return RolloutWorker(engine, rewards, tokenizer.decode, sampling, setting, name)


def make_engine(config: RunConfig, tokenizer: Tokenizer) -> Engine:
    """What samples, by engine.kind. Raises ConfigError when it cannot be had."""
    if config.engine.is_custom:
        return custom_engine(config.engine.kind)(config, tokenizer)
    if config.engine.kind == "openai":
        from rollout.openai_engine import OpenAIEngine

        return OpenAIEngine(config.engine, tokenizer.vocab_size, tokenizer)
    if config.engine.kind == "vllm":
        from rollout.vllm_engine import VllmEngine

        return VllmEngine(config.model.path, config.engine)
    from rollout.engine import HybridEngine

    records = config.correction.replay_experts
    lm = make_policy(config, tokenizer).lm().to(config.engine.device)
    return HybridEngine(lm, config.engine, records_experts=records)


def custom_engine(path: str) -> Callable[[RunConfig, Tokenizer], Engine]:
    """The function that `path`, as my.module:make_engine, names. Raises ConfigError when it cannot be found."""
    module, _, name = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"engine.kind={path} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    if not callable(make):
        raise ConfigError(f"engine.kind={path} must be a function of (config, tokenizer), got {type(make).__name__}.")
    return typing.cast(Callable[[RunConfig, Tokenizer], Engine], make)


def make_worker_pool(config: RunConfig, sandboxes: SandboxActors | None = None) -> ProgramPool:
    """A worker's sandbox: its way to the run's actors, or a pool of its own."""
    return sandboxes.connect() if sandboxes else make_sandbox_pool(config)


def make_setting(config: RunConfig, tokenizer: Tokenizer, open_pool: Callable[[], ProgramPool]) -> Setting | None:
    """What a worker's episodes of several turns are played in; None if they have one.

    Raises ConfigError if the environment cannot be made.
    """
    from rollout.episodes import Setting

    environment = make_environment(config.episode, open_pool)
    if environment is None:
        return None
    # A word that is no token of this tokenizer ends no turn: then the end of the text does.
    words = tokenizer.ids_of(environment.stop_words)
    return Setting(
        environment,
        dataclasses.replace(config.episode, max_tokens=config.longest_trajectory),
        ObservationEncoder(tokenizer, config.episode.max_observation_tokens),
        (tokenizer.eos_id, *words),
        lockstep=config.max_staleness == 0,
    )


def make_rewards(
    config: RunConfig,
    sandboxes: SandboxActors | None = None,
    *,
    open_pool: Callable[[], ProgramPool] | None = None,
) -> Rewards:
    """The scorer: verifiers in processes of their own and, if a task needs it, a sandbox, which it closes.

    Args:
        config: the run.
        sandboxes: the run's sandbox actors, if it has any.
        open_pool: gives the pool that it shares with others; None opens one.
    """
    from rewards.logic import LogicAnswer
    from rewards.math_answer import MathAnswer
    from rewards.reward import Rewards

    verifiers: dict[str, Any] = {
        "math": MathAnswer(config.rewards.math),
        "logic": LogicAnswer(config.rewards.logic),
    }
    pools: list[ProgramPool] = []
    if needs_sandbox(config):
        from rewards.code_tests import CodeTests
        from rewards.repository_tests import RepositoryTests

        pools.append(open_pool() if open_pool else make_worker_pool(config, sandboxes))
        verifiers["code"] = CodeTests(pools[0], config.rewards.code)
        verifiers["repository"] = RepositoryTests(pools[0], config.rewards.repository)
    rewards = Rewards(dataclasses.replace(config.rewards, verifiers=verifiers_in_use(config)), verifiers, owned=pools)
    rewards.start()  # in the background: a grader that cannot start ends the run at the next score
    return rewards


def verifiers_in_use(config: RunConfig) -> dict[str, str]:
    """Verifier by task, of the tasks that can come up; rows of files name their tasks themselves, so then all."""
    names = [name for name, weight in config.task.mixture.items() if weight > 0]
    if any(name in config.task.files for name in names):
        return config.rewards.verifiers
    return {name: config.rewards.verifier_of(name) for name in names}


def make_sandbox_pool(config: RunConfig) -> ProgramPool:
    """Where the programs that the model writes are run. Raises SandboxError if they cannot be isolated there."""
    from sandbox import open_pool

    return open_pool(config.sandbox)


def needs_sandbox(config: RunConfig) -> bool:
    """True when some task's answers may be programs or patches, or the policy has tools."""
    names = {config.rewards.default_verifier, *verifiers_in_use(config).values()}
    return config.episode.needs_sandbox or not names.isdisjoint(("code", "repository"))


def make_sampling(config: RunConfig, tokenizer: Tokenizer, setting: Setting | None = None) -> Sampling:
    """The engine's sampling with this tokenizer's ids; the length limit is set for each request."""
    tokens = Sampling(stop_token_ids=setting.stop_token_ids if setting else (tokenizer.eos_id,))
    if config.sampling.thinking_budget:  # a tokenizer without think tokens is all right as long as nobody counts them
        tokens = dataclasses.replace(
            tokens,
            think_open_id=tokenizer.token_id("<think>"),
            think_close_id=tokenizer.token_id("</think>"),
        )
    return config.sampling.at(tokens, max_new_tokens=1)


def make_demonstrations(config: RunConfig, tokenizer: Tokenizer) -> Callable[[int], list[Demonstration]]:
    """The cold start's examples, batch after batch."""
    source = demonstration_source(config.task, config.seed)
    encode_observation = ObservationEncoder(tokenizer, config.episode.max_observation_tokens)

    def tokenised() -> Demonstration:
        example = source.next()
        completion, observed = tokenizer.encode(example.completion_text), []
        for observation, text in example.later:
            start = len(completion)
            completion += encode_observation(observation)
            observed.append((start, len(completion)))
            completion += tokenizer.encode(text)
        completion.append(tokenizer.eos_id)
        return Demonstration(tuple(tokenizer.encode(example.prompt_text)), tuple(completion), tuple(observed))

    return lambda step: [tokenised() for _ in range(config.sft.batch_size)]


def export_policy(learner: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Policy and tokenizer in one folder that can be opened again, here or by transformers."""
    learner.export(folder, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    tokenizer.save(folder)
