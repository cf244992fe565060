import pytest

from cispo.errors import ConfigError
from launch.run_folder import one_driver


def test_a_folder_has_one_driver_at_a_time(tmp_path):
    with one_driver(tmp_path / "run"):  # noqa: SIM117 - the second is the test
        with pytest.raises(ConfigError, match="in use by another cispo process"), one_driver(tmp_path / "run"):
            pass
    with one_driver(tmp_path / "run"):
        pass  # free again
