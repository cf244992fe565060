"""`cispo launch slurm|ray|local`: the run of `cispo train`, elsewhere than in this terminal (docs/slurm.md)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from configs.schema import RunConfig

SLURM = """\
The settings are those of `cispo train`, and slurm.* says what to ask for:

  cispo launch slurm --dry-run slurm.nodes=2 slurm.gpus_per_node=8 slurm.time=12:00:00 learner.device=cuda
  cispo launch slurm name=mine slurm.partition=gpu slurm.account=me slurm.setup='["module load cuda"]'
  cispo launch slurm -m learner.lr=1e-4,3e-4 seed=1,2       four runs, one array job
  cispo launch slurm --resume runs/mine slurm.time=24:00:00

The job saves before its time limit, goes back into the queue and goes on by itself; docs/slurm.md tells all of it.
"""


def add_launch_commands(commands: Any, overrides_help: str) -> None:
    """Add `launch` and its own commands to those of `cispo`."""
    launch = commands.add_parser(
        "launch", help="train elsewhere: as a job of Slurm, of a Ray cluster, in the background"
    )
    own = launch.add_subparsers(metavar="where", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    slurm = own.add_parser(
        "slurm", help="a job, or an array of them, with Ray over its nodes", description=SLURM, formatter_class=raw
    )
    slurm.add_argument("--dry-run", action="store_true", help="check, print the script and submit nothing")
    slurm.add_argument("--resume", metavar="RUN", type=Path, help="go on with runs/<name> from its newest checkpoint")
    slurm.add_argument("-m", "--multirun", action="store_true", help="values with commas are a sweep: one array job")
    slurm.add_argument("--max-parallel", type=int, default=0, metavar="N", help="tasks of an array at once; 0 is all")
    slurm.set_defaults(run=run_slurm)

    ray = own.add_parser(
        "ray",
        help="a job of a Ray cluster that is up (needs ray[default] here and there)",
        description="The cluster's head runs `cispo train` in a folder that all nodes see under the same path.",
    )
    ray.add_argument("--address", default="http://127.0.0.1:8265", help="of the dashboard (default %(default)s)")
    ray.add_argument("--follow", action="store_true", help="show the log until the job ends; exit 1 if it fails")
    ray.set_defaults(run=run_ray)

    local = own.add_parser("local", help="this machine, in the background, with a log in the run's folder")
    local.set_defaults(run=run_local)
    for parser in (slurm, ray, local):
        parser.add_argument("overrides", nargs="*", metavar="key=value", help=overrides_help)
    for parser in (ray, local):
        parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with runs/<name>")


def run_slurm(options: argparse.Namespace) -> int:
    """`cispo launch slurm`."""
    from cispo.errors import ConfigError
    from launch.submit import known_cluster, plan_run, plan_sweep, submit, told

    if options.multirun and options.resume:
        raise ConfigError("--resume goes on with one run, and -m begins several; use one of them.")
    if options.max_parallel < 0:
        raise ConfigError(f"--max-parallel must be 0 (all) or more; got {options.max_parallel}.")
    free = options.overrides if options.resume else with_a_free_name(options.overrides, options.multirun)
    cluster, unchecked = known_cluster()
    plan = plan_sweep(free, cluster) if options.multirun else plan_run(free, cluster, resume=options.resume)
    tell_plan(plan.config)
    if unchecked:
        print(f"cispo: {unchecked}", file=sys.stderr)
    if options.dry_run:
        print(plan.text(options.max_parallel), end="")
        return 0
    print(told(plan, submit(plan, options.max_parallel)))
    return 0


def tell_plan(config: RunConfig) -> None:
    """What the run, or the first of a sweep, will do; beside the script, which goes to standard output."""
    from launch.plan import lines
    from launch.start_checks import plan_elsewhere

    if config.slurm.container == "none":  # an image may have files that are not here
        print("\n".join(lines(plan_elsewhere(config))), file=sys.stderr)


def with_a_free_name(overrides: list[str], is_sweep: bool) -> list[str]:
    """The overrides with a name that no run has yet, if none was typed."""
    from launch.compose import compose
    from launch.run_folder import with_free_name
    from launch.sweep import expand

    if any(override.startswith("name=") for override in overrides):
        return overrides
    first = expand(overrides)[0] if is_sweep else overrides
    ours = ("cluster", "cluster.")  # judged with the rest, as part of the job
    config = compose([*(override for override in first if not override.startswith(ours)), "cluster.gpus_per_node=0"])
    config = dataclasses.replace(config, name="sweep") if is_sweep else config
    return [*overrides, f"name={with_free_name(config, overrides).name}"]


def run_ray(options: argparse.Namespace) -> int:
    """`cispo launch ray`."""
    from launch.ray_job import follow, submit_job, told

    job = submit_job(options.address, options.overrides, resume=options.resume)
    print(told(options.address, job), flush=True)
    return follow(options.address, job) if options.follow else 0


def run_local(options: argparse.Namespace) -> int:
    """`cispo launch local`."""
    from launch.local_job import start, told

    folder = start(options.overrides, resume=options.resume)
    print(told(folder))
    return 0
