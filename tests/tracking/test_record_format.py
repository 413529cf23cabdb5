"""Records of other versions are refused in one line that names the version to use."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness import __version__
from harness.errors import InputError
from harness.tracking.record_format import FORMAT, check_format, stamped
from tests.conftest import SHRUNK, Harness
from tests.training.kills import killed_run


@pytest.mark.parametrize("record", [{}, stamped({}), stamped({"commit": "c"})])
def test_records_of_the_format_go_on(record: dict[str, object]) -> None:
    """As does what has no record yet."""
    check_format("run a", record)


@pytest.mark.parametrize(
    ("record", "version"),
    [
        ({"format": FORMAT + 1, "harness": "9.9.0"}, f"harness 9.9.0 (format {FORMAT + 1})"),
        ({"format": FORMAT - 1, "harness": "0.2.0"}, f"harness 0.2.0 (format {FORMAT - 1})"),
        ({"format": 99}, "harness of an unknown version (format 99)"),
        ({"format": "new", "harness": "9.9.0"}, "harness 9.9.0 (format new)"),
        ({"commit": "c"}, "harness of an unknown version (format None)"),
    ],
)
def test_another_format_is_refused(record: dict[str, object], version: str) -> None:
    """The line names both versions and both formats, and what to do."""
    own = f"run a: was written by {version}, this is harness {__version__} (format {FORMAT}); "
    with pytest.raises(InputError, match=f"{re.escape(own)}go on with it by that version$"):
        check_format("run a", record)


def restamp(run: Path, number: int, version: str) -> None:
    """Make a run one that another version wrote."""
    record = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(
        json.dumps({**record, "format": number, "harness": version})
    )


OTHERS = [(99, "9.9.0"), (2, "0.2.0")]


@pytest.fixture(params=OTHERS, ids=["later", "earlier"])
def other(finished: tuple[Harness, Path], request: pytest.FixtureRequest) -> tuple[Harness, Path]:
    """A copy of a finished run by another version, whose job has a key of that version's."""
    harness, calm = finished
    number, version = request.param
    run = calm.with_name(f"other{number}")
    if not run.exists():
        shutil.copytree(calm, run)
        restamp(run, number, version)
        (run / "job.toml").write_text((run / "job.toml").read_text() + "\n[new]\nkey = 1\n")
    return harness, run


@pytest.mark.parametrize("command", ["resume", "train", "several", "evaluate", "predict"])
def test_another_versions_run_is_refused(other: tuple[Harness, Path], command: str) -> None:
    """Exit code 2 and one line with both versions, rather than what its job file can't be."""
    harness, run = other
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words: list[object] = [command, run]
    if command in ("train", "several"):
        words = ["train", harness.folder / "bilstm.toml", "--run-id", run.name, *SHRUNK]
        shutil.copy(run.with_name("calm") / "job.toml", harness.folder / "bilstm.toml")
    if command == "several":  # runs of a batch are named by their seed too
        shutil.copytree(run, run.with_name(f"{run.name}-seed1"), dirs_exist_ok=True)
        words += ["--seeds", "1-2"]
    done = harness.run_here(*words, *(["good"] if command == "predict" else []))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    record = json.loads((run / "provenance.json").read_text())
    written = f"was written by harness {record['harness']} (format {record['format']}), this is"
    assert written in line
    assert "go on with it by that version: harness reproduce" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_readers_show_another_versions_run(other: tuple[Harness, Path]) -> None:
    """`status` and `logs` take from it what they can; `compare` leaves it out, and says why."""
    harness, run = other
    shown = harness.run_here("status", run, "--json")
    assert (shown.returncode, json.loads(shown.stdout)[0]["state"]) == (0, "finished")
    compared = harness.run_here("compare", run, run.with_name("calm"), "--no-baseline")
    assert compared.returncode == 0, compared.stderr
    assert "was written by harness" in compared.stdout + compared.stderr
    log = harness.run_here("logs", run)
    assert "it printed to the terminal where it was started" in log.stderr


@pytest.mark.full
def test_another_versions_checkpoint_is_refused_not_skipped(harness: Harness) -> None:
    """A whole checkpoint that this version can't read is no broken one: no step is thrown away."""
    run = killed_run(harness, "lstm")
    path = max(run.glob("checkpoints/step-*.npz"))
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    progress = json.loads(arrays["progress"].tobytes()) | {"format": 99, "harness": "9.9.0"}
    arrays["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    done = harness.run("resume", run)
    assert done.returncode == 2, done.stderr
    assert f"{path.name}: was written by harness 9.9.0 (format 99)" in done.stderr
    assert path.exists()
