"""GB/s of each way to bring weights from the learner's process to a worker's, beside a plain copy of as many bytes.

    python benchmarks/weight_sync.py                 a quarter of an hour
    python benchmarks/weight_sync.py --only changes  how many bytes real updates change
    python benchmarks/weight_sync.py --dtype bfloat16 --copies 6

Both processes have one thread, or `--threads`. The weights are those of the 30M model, `--copies` times. A publish
begins where the learner has them in memory and ends when they stand in the worker's own tensors, with every checksum
compared; between two publishes one number in a hundred changes. Rates are of the whole version's bytes, so that of
"changed bytes" is the rate of a version and not of a wire. "copy" is numpy's, between two blocks of memory that were
used before; "actor call" hands the same arrays to the worker as the argument of a Ray call, without any check. The ways
take turns, so that all see the same machine; told are medians, and the CPU seconds of both processes. Results go to
benchmarks/results/weight_sync.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package `sandbox` before the file of that name here

import numpy as np
import torch
from engine import MODEL
from machine import machine
from torch import Tensor

from configs.fleet import ClusterConfig, SyncConfig
from launch.actors import RayHandle
from launch.cluster import cluster
from launch.compose import compose
from launch.publisher import Publisher
from launch.train import run_training
from model import HybridLM
from model.checkpoint import stream_weights
from rollout.changed_bytes import find_changes
from rollout.checksum import checksum, copy_with_checksum
from rollout.receiver import Package, Receiver
from rollout.weight_memory import WeightMemory
from rollout.weight_package import WeightPackage

RESULTS = Path(__file__).parent / "results" / "weight_sync.json"
TRANSPORTS = ("object_store", "broadcast", "changed_bytes")
CHANGED = 0.01
BLOCKS = (1, 2, 4, 8, 16, 64)
RATES = (("float32", 1e-4), ("bfloat16", 1e-4), ("bfloat16", 1e-5))
"""Learning rates of the updates whose bytes are compared."""

WAIT = 600


def weights(copies: int, dtype: str) -> dict[str, Tensor]:
    """Those of the 30M model, several times."""
    torch.manual_seed(0)
    one = {name: tensor.to(getattr(torch, dtype)) for name, tensor in stream_weights(HybridLM(MODEL))}
    return {f"{copy}.{name}": tensor.clone() for copy in range(copies) for name, tensor in one.items()}


class Source:
    """The learner's process: one publisher for each transport."""

    def __init__(self, copies: int, dtype: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.tensors = weights(copies, dtype)
        self.publishers = {name: self._publisher(name) for name in TRANSPORTS}

    def _publisher(self, transport: str) -> Publisher:
        return Publisher(
            self.call,
            SyncConfig(transport=transport, canary_tokens=0),
            rank=0,
            seed=0,
            vocab_size=1,
            tolerance=1.0,
            own_process=True,
            host=lambda: "127.0.0.1",
        )

    def call(self, method: str, *arguments: Any) -> Iterator[tuple[str, Tensor]]:
        assert method == "weights"
        return iter(self.tensors.items())

    def change(self) -> None:
        """An update that one number in a hundred feels."""
        for tensor in self.tensors.values():
            flat = tensor.view(-1)
            flat[torch.randint(len(flat), (max(1, int(CHANGED * len(flat))),))] += 1.0

    def package(self, transport: str, version: int) -> Package | None:
        return self.publishers[transport].package(version)

    def send(self) -> str:
        return self.publishers["broadcast"].send(1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.view(torch.uint8).numpy() for name, tensor in self.tensors.items()}

    def cpu_seconds(self) -> float:
        return time.process_time()


class Sink:
    """The worker's process: an engine that is a copy of the weights, and a receiver for each transport."""

    def __init__(self, copies: int, dtype: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.tensors = weights(copies, dtype)
        self.receivers = {name: Receiver(self, "rollout-0") for name in TRANSPORTS}  # type: ignore[arg-type]
        self.block = np.ones(sum(t.numel() * t.element_size() for t in self.tensors.values()), np.uint8)
        self.other = np.zeros_like(self.block)

    def load_weights(self, stream: Iterator[tuple[str, Tensor]], version: int) -> None:
        """As an engine does: into tensors that stay where they are."""
        for name, tensor in stream:
            self.tensors[name].copy_(tensor)

    def load(self, transport: str, package: Package, version: int) -> int:
        return self.receivers[transport].load(package, version).num_bytes

    def take(self, arrays: dict[str, np.ndarray]) -> None:
        """Without any check."""
        for name, array in arrays.items():
            self.tensors[name].view(torch.uint8).copy_(torch.from_numpy(array))

    def seconds_of(self, what: str) -> tuple[float, float]:
        """Wall and CPU seconds of one pass over as many bytes: "copy", "checksum", or "both" at once."""
        passes: dict[str, Callable[[], object]] = {
            "copy": lambda: np.copyto(self.other, self.block),
            "checksum": lambda: checksum(self.block),
            "both": lambda: copy_with_checksum(self.other, self.block),
        }
        begin, begin_cpu = time.perf_counter(), time.process_time()
        passes[what]()
        return time.perf_counter() - begin, time.process_time() - begin_cpu

    def cpu_seconds(self) -> float:
        return time.process_time()


class Bench:
    """Both processes, and what the driver does between them."""

    def __init__(self, source: RayHandle, sink: RayHandle) -> None:
        self.source, self.sink = source, sink
        self.version = 0

    def publish(self, transport: str) -> int:
        """One version; the bytes that travelled."""
        package = self.source.reference("package", transport, self.version).result(WAIT)
        sending = self.source.call("send") if transport == "broadcast" else None
        num_bytes: int = self.sink.call("load", transport, package, self.version).result(WAIT)
        if sending is not None:
            reason = sending.result(WAIT)
            assert not reason, reason
        return num_bytes

    def hand_over(self) -> int:
        """The arrays as an argument."""
        arrays = self.source.reference("arrays").result(WAIT)
        self.sink.call("take", arrays).result(WAIT)
        return 0

    def timed(self, run: Callable[[], int]) -> dict[str, float]:
        before = self.cpu_seconds()
        begin = time.perf_counter()
        num_bytes = run()
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "cpu_seconds": self.cpu_seconds() - before, "bytes": num_bytes}

    def cpu_seconds(self) -> float:
        return sum(float(handle.call("cpu_seconds").result(WAIT)) for handle in (self.source, self.sink))

    def round(self) -> dict[str, dict[str, float]]:
        """Every way once."""
        self.version += 1
        self.source.call("change").result(WAIT)
        found = {name: self.timed(lambda name=name: self.publish(name)) for name in TRANSPORTS}
        found["actor call"] = self.timed(self.hand_over)
        for what in ("copy", "checksum", "both"):
            seconds, cpu_seconds = self.sink.call("seconds_of", what).result(WAIT)
            found[what] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": 0}
        return found


def rates(copies: int, dtype: str, repeats: int, num_threads: int) -> list[dict[str, Any]]:
    """Medians over the rounds after the first, which finds everything cold."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights(copies, dtype).values())
    with cluster(ClusterConfig(num_workers=2, object_store_mb=6 * total >> 20)):
        arguments = copies, dtype, num_threads
        source = RayHandle("learner-0", Source, *arguments, num_threads=num_threads)
        sink = RayHandle("rollout-0", Sink, *arguments, num_threads=num_threads)
        bench = Bench(source, sink)
        rounds = [bench.round() for _ in range(repeats + 1)][1:]
        source.stop()
        sink.stop()
    lines = []
    copy = statistics.median(each["copy"]["seconds"] for each in rounds)
    for way in rounds[0]:
        seconds = statistics.median(each[way]["seconds"] for each in rounds)
        lines.append(
            {
                "way": way,
                "dtype": dtype,
                "threads": num_threads,
                "gigabytes": round(total / 1e9, 3),
                "seconds": round(seconds, 4),
                "cpu_seconds": round(statistics.median(each[way]["cpu_seconds"] for each in rounds), 4),
                "gigabytes_per_second": round(total / seconds / 1e9, 2),
                "of_a_copy": round(copy / seconds, 3),
                "bytes_sent": round(statistics.median(each[way]["bytes"] for each in rounds)),
            }
        )
    return lines


class Watch:
    """Sees every version on its way to the workers, and how it differs from the one before."""

    def __init__(self, service: Any) -> None:
        self._load = service.load_weights
        service.load_weights = self._watch
        self._before: WeightPackage | None = None
        self.shares: list[dict[str, float]] = []

    def _watch(self, publication: Any, version: int) -> Any:
        package = publication.package
        if self._before is not None:
            self.shares.append(self._compare(self._before, package))
        self._before = package
        return self._load(publication, version)

    def _compare(self, old: WeightPackage, new: WeightPackage) -> dict[str, float]:
        """Share of the bytes that changed, and of those that changed_bytes would send, by size of block."""
        total = new.num_bytes
        differing = sum(
            int(np.count_nonzero(old.arrays[name].view(np.uint8) != array.view(np.uint8)))
            for name, array in new.arrays.items()
        )
        shares = {"changed": differing / total}
        for block in BLOCKS:
            memory = WeightMemory(old.manifest.forms)
            for name, array in old.arrays.items():
                np.copyto(memory.arrays[name], array)
            memory.version = old.manifest.version
            changes = find_changes(memory, old.manifest.records, new.tensors(), new.manifest.version, block)
            shares[f"sent in blocks of {block}"] = changes.num_bytes / total
        return shares


def changes(dtype: str, lr: float) -> dict[str, Any]:
    """Of three steps of the embedded default after a short cold start, with a reward that always teaches something."""
    with tempfile.TemporaryDirectory() as folder:
        config = compose(
            [
                f"runs_folder={folder}",
                "name=changes",
                "cluster=inline",
                "cluster.num_workers=1",
                "steps=3",
                "eval_every=0",
                "sft.steps=100",
                f"rewards.custom={Path(__file__).with_name('noise_reward.py')}:reward",
                "evaluation.num_prompts=1",
                "tracking.console=false",
                f"learner.dtype={dtype}",
                f"learner.lr={lr}",
            ]
        )
        watches: list[Watch] = []

        def watch(service: Any) -> Any:
            watches.append(Watch(service))
            return service

        run_training(config, wrap=watch)
    shares = watches[0].shares
    mean = {key: round(statistics.mean(each[key] for each in shares), 5) for key in shares[0]}
    return {"dtype": dtype, "lr": lr, "publishes": len(shares), "updates_per_publish": config.updates_per_step, **mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of either process")
    parser.add_argument("--only", choices=("ways", "changes"))
    args = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    report = {"machine": machine("ray", "numpy"), "changed_numbers": CHANGED, "ways": [], "changes": []} | kept
    if args.only != "changes":
        report |= {"ways": measured_ways(args)}
    if args.only != "ways":
        report |= {"changes": measured_changes()}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


def measured_ways(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each way and dtype, told as it comes."""
    lines = []
    for dtype in args.dtype:
        for line in rates(args.copies * (2 if dtype == "bfloat16" else 1), dtype, args.repeats, args.threads):
            lines.append(line)
            print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    return lines


def measured_changes() -> list[dict[str, Any]]:
    """A line for each dtype and learning rate, told as it comes."""
    lines = []
    for dtype, lr in RATES:
        lines.append(changes(dtype, lr))
        print("  ".join(f"{key} {value}" for key, value in lines[-1].items()), flush=True)
    return lines


if __name__ == "__main__":
    main()
