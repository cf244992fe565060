"""Checkpoints: complete or absent, checked before they are believed, and never the last good one lost."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cispo.checkpoint import CheckpointConfig, FolderCheckpoints
from cispo.errors import CheckpointError, ConfigError
from cispo.types import Progress


class FileLearner:
    """A learner whose whole state is one number in one file."""

    def __init__(self, weight=0):
        self.weight = weight
        self.dies_while_saving = False

    def save(self, folder):
        folder.mkdir()
        (folder / "weights.bin").write_bytes(self.weight.to_bytes(64, "little"))
        if self.dies_while_saving:
            raise OSError("no space left on device")

    def load(self, folder):
        self.weight = int.from_bytes((folder / "weights.bin").read_bytes(), "little")


class CountingRollouts:
    def __init__(self, cursor=0):
        self.cursor = cursor

    def save(self, folder):
        (folder / "ledger.json").write_text(f"[{self.cursor}]")

    def load(self, folder):
        [self.cursor] = json.loads((folder / "ledger.json").read_text())


@pytest.fixture
def checkpoints(tmp_path):
    return FolderCheckpoints(tmp_path / "checkpoints", CheckpointConfig(keep=2))


def save(checkpoints, step):
    checkpoints.save(Progress(step, 100 * step, 10 * step, 1), FileLearner(step), CountingRollouts(7 * step))


def restore(checkpoints):
    learner, rollouts = FileLearner(), CountingRollouts()
    return checkpoints.restore(learner, rollouts), learner.weight, rollouts.cursor


def test_what_was_saved_comes_back(checkpoints):
    save(checkpoints, 3)
    assert restore(checkpoints) == (Progress(3, 300, 30, 1), 3, 21)


def test_without_a_checkpoint_a_run_begins(checkpoints):
    assert restore(checkpoints) == (Progress(), 0, 0)
    checkpoints.folder.mkdir()
    assert restore(checkpoints) == (Progress(), 0, 0)


def test_the_newest_by_number_is_restored_and_only_so_many_are_kept(checkpoints):
    for step in (8, 9, 10, 11):
        save(checkpoints, step)
    assert checkpoints.steps() == [10, 11]
    assert restore(checkpoints)[0].step == 11
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step_10", "step_11"]


def test_a_save_that_fails_leaves_the_older_checkpoint(checkpoints):
    save(checkpoints, 1)
    dying = FileLearner(2)
    dying.dies_while_saving = True
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(Progress(2), dying, CountingRollouts())
    assert checkpoints.steps() == [1]
    assert restore(checkpoints) == (Progress(1, 100, 10, 1), 1, 7)
    save(checkpoints, 2)
    assert restore(checkpoints)[0].step == 2
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step_1", "step_2"]


def test_the_same_step_can_be_saved_again(checkpoints):
    save(checkpoints, 4)
    checkpoints.save(Progress(4), FileLearner(99), CountingRollouts(5))
    assert restore(checkpoints) == (Progress(4), 99, 5)


def test_an_unfinished_folder_is_never_taken_for_a_checkpoint(checkpoints):
    save(checkpoints, 1)
    shutil.copytree(checkpoints.folder / "step_1", checkpoints.folder / ".step_2.unfinished")
    (checkpoints.folder / "step_notes").mkdir()
    assert checkpoints.steps() == [1]
    assert restore(checkpoints)[0].step == 1


FILES = ("progress.json", "rollouts/ledger.json", "learner/weights.bin", "manifest.json")


@pytest.mark.parametrize("file", FILES)
def test_a_missing_or_cut_file_is_named(checkpoints, file):
    save(checkpoints, 1)
    path = checkpoints.folder / "step_1" / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=file.split(".")[0]) as cut:
        restore(checkpoints)
    assert "step_1 to resume from the checkpoint before it" in str(cut.value)
    path.unlink()
    with pytest.raises(CheckpointError, match=file.split(".")[0]):
        restore(checkpoints)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES[:3]), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_single_flipped_bit_is_found_and_the_file_named(checkpoints, file, place, bit):
    save(checkpoints, 1)
    path = checkpoints.folder / "step_1" / file
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"damaged: {file} is missing or changed"):
        restore(checkpoints)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_damaged_manifest_is_an_error_or_harmless(checkpoints, place, value):
    save(checkpoints, 1)
    path = checkpoints.folder / "step_1" / "manifest.json"
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content)
    try:
        assert restore(checkpoints) == (Progress(1, 100, 10, 1), 1, 7)  # white space, say
    except CheckpointError as error:
        assert "step_1" in str(error)


def test_nothing_is_loaded_from_a_damaged_checkpoint(checkpoints):
    save(checkpoints, 1)
    (checkpoints.folder / "step_1" / "rollouts" / "ledger.json").write_text("{}")
    learner, rollouts = FileLearner(55), CountingRollouts(66)
    with pytest.raises(CheckpointError, match="rollouts"):
        checkpoints.restore(learner, rollouts)
    assert (learner.weight, rollouts.cursor) == (55, 66)


def test_the_advice_works(checkpoints):
    save(checkpoints, 1)
    save(checkpoints, 2)
    (checkpoints.folder / "step_2" / "learner" / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match=f"delete {checkpoints.folder}/step_2 to resume"):
        restore(checkpoints)
    shutil.rmtree(checkpoints.folder / "step_2")
    assert restore(checkpoints)[0].step == 1


def test_the_manifest_lists_every_file_with_its_size(checkpoints):
    save(checkpoints, 1)
    manifest = json.loads((checkpoints.folder / "step_1" / "manifest.json").read_text())
    assert set(manifest) == set(FILES) - {"manifest.json"}
    assert manifest["learner/weights.bin"][0] == 64


def test_keeping_none_is_refused():
    with pytest.raises(ConfigError, match=r"checkpoints\.keep must be at least 1; got 0"):
        CheckpointConfig(keep=0)
