"""What `cispo launch slurm` prints and refuses, where there is no Slurm: a laptop."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from configs.slurm import SlurmConfig, megabytes_of, seconds_of
from launch.cli import main
from launch.compose import compose, save_config
from launch.slurm import BODY
from launch.slurm_limits import Node, Partition, SlurmCluster

SHELLCHECK = shutil.which("shellcheck")
BASH = shutil.which("bash")


@pytest.fixture
def script(no_slurm, capsys, tmp_path):
    """script(*words): what --dry-run prints, valid as bash."""

    def make(*words):
        assert main(["launch", "slurm", "--dry-run", f"runs_folder={tmp_path}", "name=mine", *words]) == 0
        text = capsys.readouterr().out
        assert subprocess.run([BASH, "-n"], input=text, text=True, capture_output=True).stderr == ""
        return text

    return make


@pytest.fixture
def refused(no_slurm, capsys, tmp_path):
    """refused(*words): the sentences that it ends with."""

    def make(*words):
        assert main(["launch", "slurm", "--dry-run", f"runs_folder={tmp_path}", "name=mine", *words]) == 1
        return capsys.readouterr().err

    return make


def variable(text, name, index=0):
    """The words of a bash array of the script, as bash itself reads it."""
    head = text.split("# --- from here on")[0].replace("[ $? -eq 0 ]", "true")
    program = f'{head}\nprintf "%s\\0" "${{{name}[@]}}"'
    done = subprocess.run(
        [BASH], input=program, text=True, capture_output=True, env={"SLURM_ARRAY_TASK_ID": str(index)}
    )
    return done.stdout.split("\0")[:-1]


def test_every_setting_becomes_its_directive(script):
    text = script(
        "slurm.nodes=2", "slurm.gpus_per_node=8", "slurm.cpus_per_task=16", "slurm.memory=64G",
        "slurm.time=1-00:00:00", "slurm.partition=gpu", "slurm.account=me", "slurm.qos=high", "slurm.constraint=h100",
        "slurm.signal_seconds=120", "slurm.options=[--exclusive]", "learner.device=cuda",
    )  # fmt: skip
    directives = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    wanted = (
        "--job-name=mine --nodes=2 --ntasks-per-node=1 --cpus-per-task=16 --gpus-per-node=8 --mem=64G "
        "--time=1-00:00:00 --partition=gpu --account=me --qos=high --constraint=h100 --signal=B:USR1@120 --exclusive "
        "--requeue --open-mode=append"
    )
    assert set(wanted.split()) <= set(directives)
    assert not any("array" in directive for directive in directives)


def test_what_is_not_asked_for_is_not_in_the_script(script):
    text = script()
    for option in (
        "--mem",
        "--time",
        "--partition",
        "--account",
        "--qos",
        "--constraint",
        "--gpus-per-node",
        "--array",
    ):
        assert f"#SBATCH {option}" not in text


@pytest.mark.parametrize(
    "override",
    [
        "task.mixture={chain: 1, calculate: 2}",
        "learner.lr=[[0, 1e-4], [10, 1e-5]]",
        "tracking.project='it\\'s $HOME; `rm -rf x` \"quoted\"'",
        "slurm.environment.NOTE='two words'",
    ],
)
def test_an_override_reaches_the_driver_as_it_was_typed(script, override):
    assert override in variable(script(override), "overrides")


def test_the_driver_gets_the_folder_that_the_script_is_kept_in(script, tmp_path):
    text = script()
    words = variable(text, "overrides")
    assert words[-3:] == ["cluster.kind=ray", "name=mine", f"runs_folder={tmp_path}"]
    assert variable(text, "run") == [str(tmp_path / "mine")]
    assert f"#SBATCH --output={tmp_path}/mine/launch/slurm-%j.log" in text


def test_a_folder_with_a_blank_survives_bash_and_hydra(no_slurm, capsys, tmp_path):
    from launch.compose import compose

    folder = tmp_path / "my runs, 1"
    assert main(["launch", "slurm", "--dry-run", f"runs_folder='{folder}'", "name=mine"]) == 0
    text = capsys.readouterr().out
    assert compose(variable(text, "overrides")).runs_folder == str(folder)
    assert variable(text, "run") == [str(folder / "mine")]


def test_setup_and_environment_come_before_ray_and_a_failing_line_is_told(script):
    text = script('slurm.setup=["false || (exit 3)"]', "slurm.environment.NCCL_DEBUG=INFO", "slurm.environment.LEVEL=1")
    assert text.index("export NCCL_DEBUG=INFO") < text.index("start_ray")
    done = subprocess.run([BASH], input=text.split("# the run")[0], text=True, capture_output=True)
    assert done.returncode == 1 and "a line of slurm.setup failed: false || (exit 3)" in done.stdout


def test_containers(script):
    pyxis = script("slurm.container=pyxis", "slurm.image=nvcr.io/x:1", "slurm.mounts=[/data]")
    assert "--container-image=nvcr.io/x:1" in variable(pyxis, "step_options")
    assert any(word.endswith(",/data:/data") for word in variable(pyxis, "step_options"))
    assert variable(pyxis, "python") == ["python3"]
    gpu = ("slurm.gpus_per_node=1", "learner.device=cuda", "slurm.python=/opt/python")
    apptainer = script("slurm.container=apptainer", "slurm.image=/images/x.sif", *gpu)
    assert variable(apptainer, "container")[:3] == ["apptainer", "exec", "--nv"]
    assert variable(apptainer, "container")[-1] == "/images/x.sif"
    assert variable(apptainer, "python") == ["/opt/python"]


def test_a_moved_run_is_seen_in_its_container_where_it_is_now(no_slurm, capsys, tmp_path):
    moved = tmp_path / "elsewhere" / "mine"
    moved.mkdir(parents=True)
    save_config(compose(["cluster=ray", f"runs_folder={tmp_path}/old", "name=mine"]), moved / "config.yaml")
    within = ("slurm.container=apptainer", "slurm.image=/images/x.sif")
    assert main(["launch", "slurm", "--dry-run", "--resume", str(moved), *within]) == 0
    (bound,) = [word for word in variable(capsys.readouterr().out, "container") if word.startswith("--bind")]
    assert f"{moved.parent}:{moved.parent}" in bound


def test_a_sweep_is_one_array_whose_tasks_have_runs_of_their_own(script, tmp_path):
    text = script("-m", "learner.lr=1e-4,3e-4", "seed=1,2", "--max-parallel=2")
    assert "#SBATCH --array=0-3%2" in text and "slurm-%A_%a.log" in text
    runs = [variable(text, "run", index)[0] for index in range(4)]
    assert len(set(runs)) == 4 and all(Path(run).parent == tmp_path / "mine" for run in runs)
    settings = [variable(text, "overrides", index) for index in range(4)]
    assert [(s[0], s[1]) for s in settings] == [
        ("learner.lr=0.0001", "seed=1"), ("learner.lr=0.0001", "seed=2"),
        ("learner.lr=0.0003", "seed=1"), ("learner.lr=0.0003", "seed=2"),
    ]  # fmt: skip
    assert [f"name={Path(run).name}" for run in runs] == [s[-2] for s in settings]


def test_a_sweep_may_not_change_the_request(refused):
    assert "no setting of slurm can be swept" in refused("-m", "slurm.nodes=1,2", "cluster.num_workers=4")


def test_all_faults_are_told_at_once(refused):
    told = refused(
        "steps=-1", "slurm.nodes=0", "slurm.time=soon", "slurm.memory=lots", "slurm.partition=a b", "slurm.image=x",
        "slurm.signal_seconds=5", "cluster=inline", "slurm.node=8",
    )  # fmt: skip
    for fault in (
        "slurm.nodes must be at least 1", "'soon' is no time", "'lots' is no amount", "slurm.partition must be one",
        "slurm.image and slurm.mounts need", "signal_seconds must exceed 30", "cluster=inline trains in one process",
        "unknown key 'slurm.node': did you mean 'slurm.nodes'?", "steps must be at least 0",
    ):  # fmt: skip
        assert fault in told


@pytest.mark.parametrize(
    "words, fault",
    [
        (("slurm.nodes=2", "slurm.gpus_per_node=4", "learner.num_ranks=9", "learner.device=cuda"),
         "x slurm.gpus_per_node=4 has 8"),
        (("slurm.gpus_per_node=4",), "would stand idle"),
        (("slurm.gpus_per_node=4", "engine.device=cuda", "cluster.gpus_per_worker=1", "learner.device=cuda"),
         "the learner's 0 GPUs and the workers' 12 (cluster.gpus_per_worker=1) are 12"),
        (("slurm.nodes=20", "slurm.gpus_per_node=4", "engine.device=cuda", "cluster.gpus_per_worker=5"),
         "cluster.gpus_per_worker=5 do not fit, because a worker has its GPUs on one node"),
        (("experiment=node", "slurm.gpus_per_node=4"), "are 16, and slurm.nodes=1 x slurm.gpus_per_node=4 has 4"),
        (("slurm.nodes=9", "cluster.num_workers=4"), "more than there are processes to place"),
        (("slurm.nodes=2", "cluster.num_nodes=3"), "cluster.num_nodes=3 must be slurm.nodes=2"),
        (("cluster.num_threads=4", "slurm.cpus_per_task=2"), "must not exceed slurm.cpus_per_task=2"),
        (("cluster.address=1.2.3.4:6379",), "the job writes its own"),
        (("slurm.time=4", "slurm.signal_seconds=300"), "must be longer than slurm.signal_seconds=300"),
        (("slurm.container=pyxis",), "needs slurm.image"),
        (('slurm.options=["-x"]',), "options of sbatch begin with --"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(refused, words, fault):
    if "learner.device=cuda" in words or "slurm.gpus_per_node=4" in words:
        words = (*words, "cluster.num_workers=12")
    assert fault in refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("experiment=node", "slurm.nodes=2", "slurm.gpus_per_node=8", "learner.num_ranks=8", "cluster.num_workers=8"),
        ("experiment=node", "slurm.gpus_per_node=8", "learner.num_ranks=6", "cluster.num_workers=2"),
        ("slurm.gpus_per_node=4", "engine.device=cuda", "cluster.gpus_per_worker=1", "cluster.num_workers=4"),
    ],
    ids=["two nodes", "other shares of one", "only the workers"],
)
def test_what_the_gpus_suffice_for_is_accepted_with_a_name_and_without(no_slurm, capsys, tmp_path, words):
    for name in ((), ("name=mine",)):
        assert main(["launch", "slurm", "--dry-run", f"runs_folder={tmp_path}", *words, *name]) == 0
        assert "#SBATCH --gpus-per-node=" in capsys.readouterr().out


def test_ray_and_torch_take_the_same_network(script):
    text = script("slurm.interface=ib0")
    assert "--interface=ib0" in variable(text, "ray_options")
    assert variable(text, "GLOO_SOCKET_IFNAME") == variable(text, "NCCL_SOCKET_IFNAME") == ["ib0"]
    assert variable(
        script("slurm.interface=ib0", "slurm.environment.NCCL_SOCKET_IFNAME=eth0"), "NCCL_SOCKET_IFNAME"
    ) == ["eth0"]
    assert "SOCKET_IFNAME" not in script()


def test_a_job_without_a_time_has_the_default_of_its_partition():
    partition = Partition("short", True, None, max_time="1-00:00:00", default_time="05:00", accounts=None, qos=None)
    cluster = SlurmCluster((partition,), (Node("a", ("short",), cpus=8, memory=8000, gpus=0, features=()),))
    (fault,) = cluster.faults(SlurmConfig(signal_seconds=300))
    assert "signal_seconds=300 must be shorter than the limit" in fault and "05:00" in fault
    assert not list(cluster.faults(SlurmConfig(signal_seconds=200)))
    assert not list(cluster.faults(SlurmConfig(signal_seconds=300, time="1:00:00")))


def test_without_slurm_it_says_what_was_not_checked(no_slurm, capsys, tmp_path):
    assert main(["launch", "slurm", "--dry-run", f"runs_folder={tmp_path}"]) == 0
    assert "scontrol is not on this machine, so whether the cluster has such a partition" in capsys.readouterr().err
    assert main(["launch", "slurm", f"runs_folder={tmp_path}"]) == 1
    assert "sbatch is not on this machine" in capsys.readouterr().err
    assert list(tmp_path.glob("embedded*")) == [], "something was left behind"


GPUS = ("slurm.gpus_per_node=8", "engine.device=cuda")


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (("cluster.num_workers=10", "cluster.gpus_per_worker=0.6"), 10),  # 6 by adding up
        (("cluster.num_workers=5", "cluster.gpus_per_worker=0.6", "learner.num_ranks=5", "learner.device=cuda"), 10),
        (("cluster.num_workers=17", "cluster.gpus_per_worker=0.5"), 9),
        (("cluster.num_workers=25", "cluster.gpus_per_worker=0.333333"), 9),
    ],
)
def test_a_worker_is_not_cut_over_two_gpus(refused, words, needed):
    assert f"are {needed}, and slurm.nodes=1 x slurm.gpus_per_node=8 has 8" in refused(*GPUS, *words)


@pytest.mark.parametrize(("workers", "part"), [(16, 0.5), (24, 1 / 3), (8, 0.6), (8, 1), (4, 2)])
def test_as_many_workers_as_fit_are_not_refused(script, workers, part):
    script(*GPUS, f"cluster.num_workers={workers}", f"cluster.gpus_per_worker={part}")


def test_what_no_machine_could_do_is_refused_before_the_queue(refused, tmp_path):
    """All of it at once, and in an array of every run."""
    (tmp_path / "one.jsonl").write_text('{"prompt": 1}\n')
    files = ("task=files", f"task.files.mine.path={tmp_path}/one.jsonl", "sft.steps=0")
    told = refused(
        "rewards.custom=no.py:f", "learner=megatron", "learner.num_ranks=4", "learner.layout.tensor=3", *files
    )
    for fault in ("no.py:f, but there is no such file", "tensor=3", "one.jsonl has no usable prompt"):
        assert fault in told
    assert "no.py:f, but there is no such file" in refused("-m", "seed=1,2", "rewards.custom=no.py:f")


def test_a_container_may_have_what_is_not_here(script):
    assert "rewards.custom=no.py:f" in script(
        "slurm.container=apptainer", "slurm.image=/x.sif", "rewards.custom=no.py:f"
    )


def test_the_plan_is_told_beside_the_script(script, no_slurm, capsys, tmp_path):
    assert main(["launch", "slurm", "--dry-run", f"runs_folder={tmp_path}", "groups_per_step=8"]) == 0
    told = capsys.readouterr()
    assert "8 prompts x 16 samples" in told.err and "8 prompts" not in told.out


@pytest.mark.parametrize(
    "option", ["--signal=USR1@10", "--no-requeue", "--output=/dev/null", "--array=0-3", "--time=1:00:00"]
)
def test_options_that_the_script_needs_for_itself_are_refused(refused, option):
    assert f"slurm.options[0]={option}: the script sets this itself" in refused(f"slurm.options=['{option}']")


def a_program(folder, name, text):
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_job_that_slurm_refuses_leaves_nothing_in_the_way_of_the_next_try(no_slurm, capsys, tmp_path):
    a_program(tmp_path / "bin", "sbatch", "echo 'sbatch: error: Batch job submission failed: QOSMaxSubmit' >&2; exit 1")
    words = ["launch", "slurm", f"runs_folder={tmp_path}", "name=mine"]
    for _ in range(2):
        assert main(words) == 1
        assert "sbatch refused the job, and nothing is kept of it" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    a_program(tmp_path / "bin", "sbatch", "echo 17")
    assert main(words) == 0
    assert (tmp_path / "mine" / "launch" / "job").read_text() == "17\n"


def test_a_run_whose_job_is_in_the_queue_is_not_resumed_by_a_second_one(no_slurm, capsys, tmp_path):
    save_config(compose(["cluster=ray", f"runs_folder={tmp_path}", "name=mine"]), tmp_path / "config.yaml")
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "job").write_text("17\n")
    a_program(tmp_path / "bin", "squeue", '[[ "$*" == *--jobs=17* ]] && echo PENDING')
    words = ["launch", "slurm", "--dry-run", "--resume", str(tmp_path)]
    assert main(words) == 1
    assert "job 17 of" in capsys.readouterr().err
    a_program(tmp_path / "bin", "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert main(words) == 0


def test_a_run_that_was_submitted_and_has_not_begun_is_not_submitted_again(refused, tmp_path):
    (tmp_path / "mine" / "launch").mkdir(parents=True)
    (tmp_path / "mine" / "launch" / "job.sbatch").touch()
    assert "was submitted already, and its job may still wait in the queue" in refused()
    assert "was submitted already, and its job may still wait in the queue" in refused("-m", "seed=1,2")


def test_a_run_that_is_there_is_not_begun_again(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").touch()
    assert "cispo launch slurm --resume" in refused()


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("90", 5400),
        (90, 5400),
        ("1:30", 90),
        ("12:00:00", 43200),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("1-0:0:5", 86405),
    ],
)
def test_times_as_slurm_reads_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text, megabytes", [(4000, 4000), ("64G", 65536), ("1t", 1 << 20), ("1K", 1)])
def test_memory_as_slurm_reads_it(text, megabytes):
    assert megabytes_of(text) == megabytes


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say_of_the_body():
    # SC2154: variables that the upper part sets. SC2317: it does not see that traps are called.
    done = subprocess.run([SHELLCHECK, "-s", "bash", "-e", "SC2154,SC2317", str(BODY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_help_shows_command_lines_that_are_understood(capsys):
    from launch.cli import make_parser
    from launch.launch_commands import SLURM

    lines = [line.split("       ")[0].strip() for line in SLURM.splitlines() if line.startswith("  cispo")]
    assert len(lines) == 4
    for line in lines:
        make_parser().parse_args(shlex.split(line)[1:])
