import pytest

from cispo.errors import ConfigError
from launch.cli import main
from launch.train import check_device


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_before_anything_starts(device):
    with pytest.raises(ConfigError, match=f"learner.device={device} cannot be used here"):
        check_device(device)


def test_the_processor_is_always_here():
    check_device("cpu")


def test_a_layout_that_cannot_work_is_refused_before_anything_starts(tmp_path, capsys):
    overrides = ["learner=megatron", "learner.num_ranks=4", "learner.layout.tensor=3", "learner.layout.expert=5"]
    assert main(["train", *overrides, f"runs_folder={tmp_path}"]) == 1
    message = capsys.readouterr().err
    for fault in ("num_attention_heads=4 is no multiple of tensor=3", "num_local_experts=8 is no multiple of expert=5"):
        assert fault in message
    assert "Nearest layouts that work on 4 ranks: " in message
    assert not list(tmp_path.iterdir())
