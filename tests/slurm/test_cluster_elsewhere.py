"""A Slurm of another making: typed GPUs, other partitions, a plugin that refuses."""

import re
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster
from tests.slurm.project import SlurmProject
from tests.slurm.test_cluster_submit import Submitter


@pytest.fixture
def visitor(elsewhere: SlurmCluster, tmp_path: Path) -> SlurmProject:
    """A project there whose harness only notes how it was called."""
    return SlurmProject(elsewhere, tmp_path, real=False)


@pytest.fixture(scope="module")
def guest(elsewhere: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmProject:
    """A project there that trains."""
    return SlurmProject(elsewhere, tmp_path_factory.mktemp("guest"), real=True)


@pytest.mark.parametrize(
    ("site", "words", "asked"),
    [
        ("", ["--gpus", "a100:2"], {"TresPerNode": "gres/gpu:a100:2", "MinMemoryNode": "16G"}),
        ("", ["--", "--gpus-per-node=t4:2"], {"TresPerNode": "gres/gpu:t4:2"}),
        ("", ["--", "--gpus=2"], {"TresPerJob": "gres/gpu:2", "TresPerNode": None}),
        ("", ["--", "--mem-per-gpu=3G"], {"MemPerTres": "gres/gpu:3072"}),
        ("", ["--", "--mem-per-cpu=2G"], {"MinMemoryCPU": "2G"}),
        ("", ["--partition", "cpu", "--gpus", 0], {"TresPerNode": None}),
        (
            "export SBATCH_GPUS_PER_NODE=t4:1\nexport SBATCH_PARTITION=spare",
            ["--gpus", "2"],
            {"TresPerNode": "gres/gpu:t4:2", "Partition": "spare"},
        ),
    ],
)
def test_each_way_of_asking_reaches_slurm_alone(
    visitor: SlurmProject, site: str, words: list[object], asked: dict[str, str | None]
) -> None:
    """What the script itself asks for does not stay beside what the user or the site asks for."""
    with (visitor.path / "slurm/site.sh").open("a") as file:
        file.write(f"{site}\n")
    hold = ["--hold"] if "--" in words else ["--", "--hold"]
    (record,) = Submitter.of(visitor).submit(visitor.path / "jobs/gru.toml", *words, *hold)
    known = visitor.cluster.show(record["job_id"])
    visitor.cluster.run("scancel", record["job_id"])
    assert {name: known.get(name) for name in asked} == asked


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--gres=gpu:a100:2", r"job \d+ on gpu-a-01: 2 GPUs, 4 CPUs, 17.2 GB$"),
        ("--gpus-per-node=2", r"1 GPU, .*; --gpus-per-node=2 was asked .* sbatch --gres=gpu:2,"),
        ("--gpus=2", r"on each of .*: 1 GPU, .*; --gpus=2 was asked .* sbatch --gres=gpu:2,"),
    ],
)
def test_the_first_line_of_a_log_says_what_was_given(
    guest: SlurmProject, flag: str, said: str
) -> None:
    """Where the script's own request got in the way, it names the option that would have done."""
    job = guest.sbatch("gru", flag, arguments=["--set", "model.unit=8"])
    job.wait("FAILED")
    # The very first line is the environment's, which here is none of common.sh's own.
    assert re.search(said, job.log.read_text().splitlines()[1])
