import pytest

from cispo.errors import ConfigError
from launch.train import check_device


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_before_anything_starts(device):
    with pytest.raises(ConfigError, match=f"learner.device={device} cannot be used here"):
        check_device(device)


def test_the_processor_is_always_here():
    check_device("cpu")
