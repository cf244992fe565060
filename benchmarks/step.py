"""One whole step of reinforcement learning against TRL's GRPOTrainer with loss_type="cispo".

    python benchmarks/step.py                       about three minutes
    python benchmarks/step.py --sizes tiny --repeats 5 --new-tokens 64

A step is: sample, score, credit, pack, updates, new weights to the sampler. Ours runs through the loop itself
(cispo/trainer.py) and every real part, in one process (cluster=inline). TRL's is GRPOTrainer with generation by
transformers. Both begin with the same weights (exported and read back), and each step have the same prompts, group
size, reward function, number of updates, learning rate, AdamW settings, ratio cap and gradient clip; float32, one
thread, temperature 1. No stop token ends a completion, so every one has exactly `new_tokens` tokens and both sides
make the same number. Steps alternate, medians are compared, the first step of each is not counted. CPU-seconds are
those of the process. Results go to benchmarks/results/step.json.

TRL is spared what ours does not do: no reference model, no router loss, no gradient checkpointing, bf16, logging,
saving, evaluation, progress bar or data workers; only its steps are timed, not what train() does around them.

What still differs, because the two are made that way:
- TRL recomputes the log-probabilities of all completions before the updates: transformers' generate returns none of
  the distribution sampled from. Ours keeps those it sampled with.
- TRL pads: prompts on the left, and generation prefills a prompt once for each of its samples. Ours packs, and
  prefills it once. The prompts differ in length by a few tokens.
- TRL shuffles completions over the updates; ours keeps whole groups together. All completions being equally long,
  `prompt` aggregation and TRL's token mean weigh every token alike.
- TRL runs transformers' default torch kernels: fused AdamW, grouped expert products.
- Ours makes the metrics and the readable records of a step (as many trajectories as a run writes by default), but
  writes no file; TRL makes its own metrics. Ours publishes the weights twice in a timed step, because
  the loop does so when it starts; a run of many steps does it once for each. Both count against ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from machine import machine
from noise_reward import noise
from transformers import MiniMaxForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar, set_verbosity_error
from trl import GRPOConfig, GRPOTrainer

from cispo.histogram import Histogram
from cispo.schedule import value_at
from cispo.trainer import train
from cispo.types import Group, Harvest, Progress
from configs.schema import RunConfig
from launch import build
from launch.actors import Handle
from launch.cluster import cluster
from launch.compose import compose
from launch.train import make_parts, place_parts
from model import HybridLM, save_pretrained
from rollout.episode import response_text_ids
from rollout.worker import RolloutWorker

RESULTS = Path(__file__).parent / "results" / "step.json"
REWARD_FILE = Path(__file__).with_name("noise_reward.py")

SIZES: dict[str, tuple[str, ...]] = {
    "tiny": ("model.shape.rotary_dim=16",),  # the default policy, but transformers rotates the whole head
    "small": (
        "model.shape.hidden_size=256",
        "model.shape.head_dim=64",
        "model.shape.rotary_dim=64",
        "model.shape.intermediate_size=128",
        "model.shape.initializer_range=0.05",
    ),
}
BETAS, EPS, WEIGHT_DECAY, LR, CAP = (0.9, 0.99), 1e-8, 0.01, 1e-4, 3.0


@dataclass(frozen=True)
class Workload:
    """What one step has to do, on both sides."""

    size: str
    prompts: int
    samples: int
    new_tokens: int
    updates: int

    @property
    def completions(self) -> int:
        return self.prompts * self.samples

    @property
    def num_tokens(self) -> int:
        """Tokens sampled and learnt from in a step."""
        return self.completions * self.new_tokens


@dataclass(frozen=True)
class Cost:
    """What one step sampled and took, and the CPU-seconds of its phases."""

    num_tokens: int
    cpu: float
    wall: float
    phases: Mapping[str, float]


def run_config(work: Workload) -> RunConfig:
    """The run that `cispo train` would make of these overrides."""
    return compose(
        [
            *SIZES[work.size],
            "cluster=inline",
            "cluster.num_workers=1",
            "task=chain",
            f"groups_per_step={work.prompts}",
            f"group_size={work.samples}",
            f"updates_per_step={work.updates}",
            f"sampling.max_new_tokens={work.new_tokens}",
            f"engine.num_slots={work.completions}",
            f"engine.max_length={work.new_tokens + 64}",
            "rewards.default_verifier=custom",
            f"rewards.custom={REWARD_FILE}:reward",
            f"ratio_cap={CAP}",
            f"learner.lr={LR}",
            "learner.max_grad_norm=1.0",
            f"learner.optimizer.betas=[{BETAS[0]},{BETAS[1]}]",
            f"learner.optimizer.eps={EPS}",
            f"learner.optimizer.weight_decay={WEIGHT_DECAY}",
            "kl_warn=1000000.0",  # what the policy becomes is not the question here
        ]
    )


# --- ours -------------------------------------------------------------------------------------------------------------


def clocked(function: Callable[..., Any], seconds: dict[str, float], phase: str) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        with cpu_clock(seconds, phase):
            return function(*arguments, **options)

    return timed


@contextmanager
def cpu_clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    begin = time.process_time()
    yield
    seconds[phase] += time.process_time() - begin


class Memory:
    """Checkpoints, evaluator and tracker of a run that writes nothing."""

    def __init__(self) -> None:
        self.progress = Progress()

    def restore(self, learner: object, rollouts: object) -> Progress:
        return self.progress

    def save(self, progress: Progress, learner: object, rollouts: object) -> None:
        self.progress = progress

    def evaluate(self) -> Mapping[str, float]:
        return {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def rollouts(self, step: int, records: Sequence[Mapping[str, Any]]) -> None: ...

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None: ...

    def alarm(self, step: int, metric: str, text: str) -> None: ...

    def phase(self, name: str, done: int, total: int, **numbers: float) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...


class Ours:
    """The loop of cispo/trainer.py with the parts of a run, one step at a time."""

    def __init__(self, config: RunConfig, stack: ExitStack) -> None:
        self.config = config
        self.seconds: dict[str, float] = defaultdict(float)
        self.memory = Memory()
        inline = stack.enter_context(cluster(config.cluster))

        def place(name: str, make: Callable[..., Any], *arguments: Any, **options: Any) -> Handle:
            return inline(name, self.make_worker if make is build.make_worker else make, *arguments, **options)

        memory = cast(Any, self.memory)
        placed = place_parts(config, place, None)
        parts = make_parts(config, build.read_data(config), placed, memory, memory, lambda service: service)
        self._take = clocked(parts.rollouts.take, self.seconds, "rollout")
        watched: dict[str, Any] = {
            "learner": SimpleNamespace(update=clocked(parts.learner.update, self.seconds, "update")),
            "rollouts": SimpleNamespace(take=self.take),
            "weights": SimpleNamespace(publish=clocked(parts.weights.publish, self.seconds, "publish")),
            "evaluator": self.memory,
        }
        self.parts = replace(parts, **watched)

    def take(self, *arguments: Any, **options: Any) -> Harvest:
        """The service's own, but the harvest can be looked at after the step."""
        self.harvest: Harvest = self._take(*arguments, **options)
        return self.harvest

    def make_worker(self, config: RunConfig) -> RolloutWorker:
        """The run's own worker, but nothing stops its samples before their limit."""
        self.worker = build.make_worker(config)
        self.worker.sampling = replace(self.worker.sampling, stop_token_ids=())
        return self.worker

    def step(self, texts: Sequence[str]) -> Cost:
        """One pass of the loop; it draws its prompts itself, and they must be `texts`."""
        self.seconds.clear()
        config = replace(self.config, steps=self.memory.progress.step + 1)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        train(config, config.learner, self.parts, temperature=config.sampling.temperature)
        cpu, wall = time.process_time() - cpu_begin, time.perf_counter() - begin
        rest = cpu - sum(self.seconds.values())
        groups = self.harvest.groups
        assert [group.prompt.text for group in groups] == list(texts), "the two sides have different prompts"
        scoring = self.score_again(groups)
        self.seconds["rollout"] -= scoring
        phases = {"generation": self.seconds.pop("rollout"), "scoring": scoring, **self.seconds, "rest": rest}
        return Cost(self.harvest.num_generated, cpu, wall, phases)

    def score_again(self, groups: Sequence[Group]) -> float:
        """CPU-seconds of scoring, which goes on in threads while the engine samples and cannot be seen there."""
        begin = time.process_time()
        scores = [
            self.worker.scorer.submit(
                group.prompt, trajectory, self.worker.decode(response_text_ids(trajectory, group.prompt))
            )
            for group in groups
            for trajectory in group.trajectories
        ]
        for score in scores:
            score.result()
        return time.process_time() - begin


# --- theirs -----------------------------------------------------------------------------------------------------------

NEVER = 1 << 30
"""As a stop token: an id that no model has."""


class StepClock(TrainerCallback):
    """Clocks from the beginning of the first update of train() to the end of its last."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 0:
            self.begin, self.cpu_begin = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu_begin, time.perf_counter() - self.begin


class Theirs:
    """GRPOTrainer; each step is a train() of as many updates as a step has."""

    def __init__(self, config: RunConfig, folder: Path, experts: str | None) -> None:
        self.clock = StepClock()
        self.seconds: dict[str, float] = defaultdict(float)
        self.num_tokens = 0
        tokenizer = build.make_tokenizer(config)
        lm = build.make_policy(config, tokenizer).lm()
        save_pretrained(lm, folder, layout="minimax")
        tokenizer.save(folder)
        model: Any = MiniMaxForCausalLM.from_pretrained(
            folder, dtype=torch.float32, **({"experts_implementation": experts} if experts else {})
        )
        assert_same_model(lm, model)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=self.reward,
            args=grpo_config(config, folder),
            train_dataset=dataset(["-"]),
            processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
            callbacks=[self.clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.eos_token_ids = [NEVER]
        self.trainer = cast(Any, trainer)
        self.trainer._generate_single_turn = clocked(trainer._generate_single_turn, self.seconds, "generation")

    def reward(self, completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        with cpu_clock(self.seconds, "scoring"):
            self.num_tokens = sum(map(len, completion_ids))
            return [noise(text) for text in completions]

    def step(self, texts: Sequence[str]) -> Cost:
        self.seconds.clear()
        self.trainer.train_dataset = dataset(texts)
        self.trainer.train()
        cpu = self.clock.cpu
        return Cost(self.num_tokens, cpu, self.clock.wall, {**self.seconds, "rest": cpu - sum(self.seconds.values())})


def dataset(texts: Sequence[str]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": list(texts)})


def grpo_config(config: RunConfig, folder: Path) -> GRPOConfig:
    """What makes TRL do the work of `config` and none besides."""
    optimizer, completions = config.learner.optimizer, config.groups_per_step * config.group_size
    return GRPOConfig(
        output_dir=str(folder / "out"),
        loss_type="cispo",
        epsilon_high=CAP,
        beta=0.0,
        scale_rewards="group",
        num_generations=config.group_size,
        per_device_train_batch_size=completions // config.updates_per_step,
        steps_per_generation=config.updates_per_step,
        gradient_accumulation_steps=1,
        num_iterations=1,
        max_steps=config.updates_per_step,
        max_completion_length=int(value_at(config.sampling.max_new_tokens, 0)),
        generation_kwargs={"eos_token_id": NEVER},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        learning_rate=LR,
        lr_scheduler_type="constant",
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=1.0,
        router_aux_loss_coef=0.0,
        shuffle_dataset=False,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


@torch.no_grad()
def assert_same_model(lm: HybridLM, theirs: Any) -> None:
    """Both sides must compute the same thing, or comparing their speed means nothing."""
    tokens = torch.arange(100) * 37 % lm.config.vocab_size
    ours = lm.logits(lm(tokens, torch.arange(100), torch.tensor([0, 100])))
    error = float((ours - theirs(input_ids=tokens[None]).logits[0]).abs().max())
    assert error < 1e-3, f"logits differ by {error}"


# --- both -------------------------------------------------------------------------------------------------------------


def compare(work: Workload, repeats: int, experts: str | None) -> dict[str, Any]:
    """Alternate steps of both sides and compare the medians."""
    config = run_config(work)
    prompts = build.read_data(config).prompts
    costs: dict[str, list[Cost]] = {"cispo": [], "trl": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        theirs = Theirs(config, folder, experts)
        sides: dict[str, Ours | Theirs] = {"cispo": Ours(config, stack), "trl": theirs}
        parameters = sum(parameter.numel() for parameter in theirs.trainer.model.parameters())
        for _ in range(1 + repeats):
            texts = [prompts.next().text for _ in range(work.prompts)]
            for name, side in sides.items():
                costs[name].append(side.step(texts))
                assert costs[name][-1].num_tokens == work.num_tokens, (name, costs[name][-1].num_tokens)
    return {**asdict(work), "parameters": parameters, **summary(work, {n: c[1:] for n, c in costs.items()})}


def summary(work: Workload, costs: Mapping[str, Sequence[Cost]]) -> dict[str, Any]:
    cpu = {name: statistics.median(cost.cpu for cost in side) for name, side in costs.items()}
    wall = {name: statistics.median(cost.wall for cost in side) for name, side in costs.items()}
    return {
        "cpu_seconds": {name: [round(cost.cpu, 3) for cost in side] for name, side in costs.items()},
        "wall_seconds": {name: [round(cost.wall, 3) for cost in side] for name, side in costs.items()},
        "tokens_per_cpu_second": {name: round(work.num_tokens / seconds, 1) for name, seconds in cpu.items()},
        "phases_cpu_seconds": {name: median_phases(side) for name, side in costs.items()},
        "ratio": round(cpu["trl"] / cpu["cispo"], 2),
        "ratio_wall": round(wall["trl"] / wall["cispo"], 2),
    }


def median_phases(side: Sequence[Cost]) -> dict[str, float]:
    return {phase: round(statistics.median(cost.phases[phase] for cost in side), 4) for phase in side[0].phases}


def show(result: Mapping[str, Any]) -> None:
    shape = "{prompts} prompts x {samples} samples x {new_tokens} tokens, {updates} updates".format_map(result)
    print(f"{result['size']} ({result['parameters']:,} parameters), {shape}")
    for name in ("cispo", "trl"):
        phases = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in result["phases_cpu_seconds"][name].items())
        print(f"  {name:5} {result['tokens_per_cpu_second'][name]:7.0f} tokens per CPU-second; CPU-seconds: {phases}")
    print(f"  ratio {result['ratio']:.2f} of CPU-seconds, {result['ratio_wall']:.2f} of wall seconds", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--repeats", type=int, default=7, help="steps that count, of each side")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--experts", help="transformers' experts_implementation; by default its own choice")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    disable_progress_bar()
    set_verbosity_error()
    results = []
    for size in args.sizes:
        work = Workload(size, args.prompts, args.samples, args.new_tokens, args.updates)
        results.append(compare(work, args.repeats, args.experts))
        show(results[-1])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine("transformers", "trl"), "dtype": "float32", "results": results}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
