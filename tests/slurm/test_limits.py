"""Time limits so near the warning before them that a job could start again and again."""

import pytest

from harness.slurm.resources import limit_of, short_limit
from tests.conftest import JOBS, Harness
from tests.slurm.stand_in import Project
from tests.slurm.test_scripts import project  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    ("args", "limit_s"),
    [
        ([], None),
        (["--gres=gpu:2", "--time-min=5"], None),
        (["--time=30"], 1800),
        (["--time", "2:30"], 150),
        (["-t", "2:00:00"], 7200),
        (["-t1-12"], 129_600),
        (["--time=1-0:30"], 88_200),
        (["--time=1-2:03:04"], 93_784),
        (["--time=60", "-t", "2"], 120),
        (["--time=infinite"], None),
    ],
)
def test_limits_are_read_as_sbatch_reads_them(args: list[str], limit_s: float | None) -> None:
    """The last flag counts, in all forms of a time."""
    assert limit_of(args) == limit_s


def test_a_limit_is_short_if_a_run_hardly_starts() -> None:
    """None, and 0, are no limit; the line has what is left."""
    assert [bool(short_limit(each)) for each in (None, 0, 300, 299, 60)] == [
        *(False, False, False, True, True),
    ]
    assert "120 s leaves 30 s before the warning" in short_limit(120)
    assert "60 s leaves 0 s" in short_limit(60)


def test_a_short_limit_is_told_when_a_job_is_submitted(harness: Harness) -> None:
    """The user's own counts before the site's, and that before the script's."""
    words = ["submit", JOBS / "lstm.toml", "--dry-run"]
    assert "before the warning" not in harness.run_here(*words).stderr
    harness.environment["SBATCH_TIMELIMIT"] = "3"
    assert "180 s leaves 90 s before the warning" in harness.run_here(*words).stderr
    assert "120 s leaves 30 s" in harness.run_here(*words, "--time", "2").stderr
    assert "before the warning" not in harness.run_here(*words, "--time", "60").stderr


def test_a_short_limit_is_told_in_the_log(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """By what Slurm tells the job."""
    times = {"SLURM_JOB_START_TIME": "1700000000", "SLURM_JOB_END_TIME": "1700000120"}
    done = project.run(project.spool(), env=project.slurm(**times))
    assert "120 s leaves 30 s before the warning" in done.stderr
    assert "warning" not in project.run(project.spool(), env=project.slurm()).stderr
