import json

import pytest

from cispo.checkpoint import CheckpointConfig, FolderCheckpoints
from cispo.errors import ConfigError
from configs.schema import RunConfig
from launch.run_files import write_summary
from launch.run_folder import one_driver, saved_config


def test_a_folder_has_one_driver_at_a_time(tmp_path):
    with one_driver(tmp_path / "run"):  # noqa: SIM117 - the second is the test
        with pytest.raises(ConfigError, match="in use by another cispo process"), one_driver(tmp_path / "run"):
            pass
    with one_driver(tmp_path / "run"):
        pass  # free again


def finished_run(folder):
    folder.mkdir()
    (folder / "config.yaml").write_text("steps: 3\n")
    write_summary(folder, {"steps": 3})
    return saved_config(
        RunConfig(steps=5), ["5 steps"], folder, FolderCheckpoints(folder / "checkpoints", CheckpointConfig())
    )


def test_the_summary_of_an_earlier_end_is_gone_while_a_run_goes_on(tmp_path):
    with finished_run(tmp_path / "run"):
        assert not (tmp_path / "run" / "summary.json").exists()


def test_a_run_that_fails_to_go_on_has_the_summary_of_its_earlier_end(tmp_path):
    with pytest.raises(ZeroDivisionError), finished_run(tmp_path / "run"):
        raise ZeroDivisionError
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"steps": 3}
    assert (tmp_path / "run" / "config.yaml").read_text() == "steps: 3\n"
