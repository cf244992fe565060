"""A Slurm that the tests of this folder may submit to, started for them and ended after them."""

import pytest

from tests.launch.slurm.two_nodes import TwoNodes, reason_against


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory):
    if reason := reason_against():
        pytest.skip(f"no Slurm can be started here: {reason}")
    cluster = TwoNodes(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()


@pytest.fixture
def slurm(slurm_cluster, monkeypatch):
    """The cluster, which this process asks and submits to."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.conf))
    return slurm_cluster


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    """A laptop: no scontrol and no sbatch, whatever is installed."""
    (tmp_path / "bin").mkdir()
    for program in ("bash",):
        (tmp_path / "bin" / program).symlink_to(f"/bin/{program}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def job(small):
    """job(runs_folder, *more): the overrides of a small run without a cold start, for a job of two nodes."""

    def overrides(runs_folder, *more):
        words = [word for word in small(runs_folder) if word != "cluster=inline"]
        short = ("sft.steps=0", "eval_every=0", "cluster.object_store_mb=100", "slurm.nodes=2", "slurm.cpus_per_task=1")
        return [*words, *short, *more]

    return overrides
