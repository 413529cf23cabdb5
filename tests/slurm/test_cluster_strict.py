"""A site that refuses --gres and --mem, and demands --ntasks."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import STRICT
from tests.slurm.project import SlurmProject
from tests.slurm.test_cluster_submit import Submitter

pytestmark = pytest.mark.cluster
RULES = {"HARNESS_SBATCH_NEVER": "gres mem", "HARNESS_SBATCH_ALWAYS": "--ntasks=1"}


@pytest.fixture(scope="module")
def strict() -> Iterator[SlurmCluster]:
    """A running Slurm with the site STRICT."""
    with SlurmCluster(STRICT) as cluster:
        yield cluster


@pytest.fixture
def submitter(strict: SlurmCluster, tmp_path: Path) -> Submitter:
    """A submitter for a project with a stand-in for the harness."""
    return Submitter.of(SlurmProject(strict, tmp_path, real=False))


def test_two_settings_of_the_site_make_a_job_acceptable(
    strict: SlurmCluster, submitter: Submitter
) -> None:
    """Without the settings the site's refusal is shown; with the settings the job runs."""
    job = submitter.harness.environment["HARNESS_HOME"] + "/jobs/gru.toml"
    for words in ([], ["--gpus", "0"]):
        done = submitter.run(job, *words)
        assert (done.returncode, "is not accepted here" in done.stderr) == (2, True)
    submitter.harness.environment |= RULES
    for more in ([], ["--gpus", "0"], ["--mem", "4G"]):
        (record,) = submitter.submit(job, *more)
        strict.wait(record["job_id"], ["COMPLETED"])
    done = submitter.run(job, "--gpus", "2")
    assert (done.returncode, "is refused by this site" in done.stderr) == (2, True)


def test_doctor_prints_the_line_that_submits_a_script(
    strict: SlurmCluster, submitter: Submitter
) -> None:
    """Slurm accepts this line and runs the script."""
    submitter.harness.environment |= RULES
    said = submitter.harness.run("doctor").stdout
    (line,) = re.findall(r"`(sed .* sbatch .*?)`", " ".join(said.split()))
    done = subprocess.run(
        ["bash", "-c", line.replace("sbatch", "sbatch --parsable", 1)],
        cwd=submitter.harness.environment["HARNESS_HOME"],
        env=submitter.harness.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    strict.wait(done.stdout.strip(), ["COMPLETED"])
