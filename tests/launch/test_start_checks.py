import pytest

from cispo.errors import CheckpointError, ConfigError, DataError
from launch.cli import main
from launch.compose import compose
from launch.start_checks import check_device, check_start, plan_here


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_before_anything_starts(device):
    with pytest.raises(ConfigError, match=f"learner.device={device} cannot be used here"):
        check_device("learner.device", device)


def test_the_processor_is_always_here():
    check_device("learner.device", "cpu")


def test_a_layout_that_cannot_work_is_refused_before_anything_starts(tmp_path, capsys):
    overrides = ["learner=megatron", "learner.num_ranks=4", "learner.layout.tensor=3", "learner.layout.expert=5"]
    assert main(["train", *overrides, f"runs_folder={tmp_path}"]) == 1
    message = capsys.readouterr().err
    for fault in ("num_attention_heads=4 is no multiple of tensor=3", "num_local_experts=8 is no multiple of expert=5"):
        assert fault in message
    assert "Nearest layouts that work on 4 ranks: " in message
    assert not list(tmp_path.iterdir())


def test_all_that_keeps_a_run_from_starting_is_told_at_once(tmp_path):
    """Each of these was found alone, one after the other, and the last of them in a worker's process."""
    config = compose(
        [
            "task=chain",
            "learner.device=foo",
            "engine.device=bar",
            "rewards.custom=/nowhere.py:reward",
            "engine.kind=no_such_module:make",
            "task.files.a.path=/nowhere/a.jsonl",
            "task.files.b.path=/nowhere/b.jsonl",
            "task.mixture={a: 1, b: 1, chain: 1}",
            f"runs_folder={tmp_path}",
        ]
    )
    with pytest.raises(ConfigError) as told:
        check_start(config)
    text = "\n".join(told.value.faults)
    for fault in (
        "learner.device=foo cannot be used here",
        "engine.device=bar cannot be used here",
        "/nowhere.py",
        "engine.kind=no_such_module:make cannot be imported",
        "/nowhere/a.jsonl does not exist",
        "/nowhere/b.jsonl does not exist",
    ):
        assert text.count(fault) == 1, text


def test_one_fault_alone_keeps_its_kind():
    with pytest.raises(CheckpointError, match=r"^model.path=/nowhere is not a folder\.$"):
        check_start(compose(["task=chain", "model.path=/nowhere"]))
    with pytest.raises(DataError, match="a.jsonl does not exist"):
        check_start(compose(["task=chain", "task.files.a.path=/nowhere/a.jsonl", "task.mixture.a=1"]))


def test_a_defect_in_a_check_is_no_message(monkeypatch):
    from launch import build

    def breaks(config):
        raise KeyError("a defect")

    monkeypatch.setattr(build, "read_data", breaks)
    with pytest.raises(KeyError):
        check_start(compose(["task=chain"]))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["cluster.gpus_per_worker=1"], "the learner's 0 GPUs and the workers' 2 are 2, and this machine has"),
        (["engine.kind=vllm"], "engine.kind=vllm needs model.path=<a model folder>"),
        (["engine=openai", "engine.server.urls=[http://a:1]", "engine.server.retokenise=true"], "for evaluation only"),
    ],
)
def test_what_a_worker_would_meet_is_met_at_the_start(overrides, says):
    import torch

    if torch.cuda.device_count():
        pytest.skip("for a machine without GPUs")
    with pytest.raises(Exception, match=says):
        check_start(compose(["task=chain", *overrides]))


def test_an_environment_that_cannot_be_made_is_told_with_other_faults():
    with pytest.raises(ConfigError) as told:
        check_start(compose(["task=chain", "episode.environment=/nowhere.py:make", "learner.device=foo"]))
    text = "\n".join(told.value.faults)
    assert text.count("episode.environment=/nowhere.py:make cannot be made") == 1
    assert "learner.device=foo" in text


def test_what_the_tokenizer_lacks_for_sampling_is_told_at_the_start(monkeypatch):
    from model import ModelError, Tokenizer

    has = Tokenizer.token_id

    def lacks(self, token):
        if token == "<think>":
            raise ModelError(f"{token} is none of them")
        return has(self, token)

    monkeypatch.setattr(Tokenizer, "token_id", lacks)
    check_start(compose(["task=chain"]))
    with pytest.raises(ModelError, match="<think> is none of them"):
        check_start(compose(["task=chain", "sampling.thinking_budget=5"]))


def test_a_plan_names_what_this_machine_lacks_and_stops_at_what_no_machine_has():
    plan = plan_here(compose(["task=chain", "learner.device=foo"]))
    assert any(warning.startswith("not on this machine: learner.device=foo") for warning in plan.warnings)
    with pytest.raises(CheckpointError, match="is not a folder"):
        plan_here(compose(["task=chain", "model.path=/nowhere", "learner.device=foo"]))
