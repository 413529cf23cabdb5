"""Time limits so near the warning before them that a job could start again and again."""

from harness.slurm.resources import short_limit
from tests.slurm.stand_in import Project
from tests.slurm.test_scripts import project  # noqa: F401 - a fixture


def test_a_limit_is_short_if_a_run_hardly_starts() -> None:
    """None, and 0, are no limit; the line has what is left."""
    assert [bool(short_limit(each)) for each in (None, 0, 300, 299, 60)] == [
        *(False, False, False, True, True),
    ]
    assert "120 s leaves 30 s before the warning" in short_limit(120)
    assert "60 s leaves 0 s" in short_limit(60)


def test_a_short_limit_is_told_in_the_log(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """By what Slurm tells the job."""
    times = {"SLURM_JOB_START_TIME": "1700000000", "SLURM_JOB_END_TIME": "1700000120"}
    done = project.run(project.spool(), env=project.slurm(**times))
    assert "120 s leaves 30 s before the warning" in done.stderr
    assert "warning" not in project.run(project.spool(), env=project.slurm()).stderr
