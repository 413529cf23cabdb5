"""Records of other versions: an earlier one's run goes on, a later one's is refused in a line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness import __version__
from harness.errors import InputError
from harness.tracking.record_format import check_format, stamped
from tests.conftest import SHRUNK, Harness, results
from tests.training.kills import kill_at, killed_run


@pytest.mark.parametrize("record", [{}, {"format": 1}, {"format": 2, "harness": "0.2.0"}])
def test_records_up_to_the_known_format_go_on(record: dict[str, object]) -> None:
    """A record without a number is the first format; the known one is the last that goes on."""
    check_format("run a", record, 2)


@pytest.mark.parametrize(
    ("record", "version"),
    [
        ({"format": 3, "harness": "9.9.0"}, "harness 9.9.0 (format 3)"),
        ({"format": 99}, "harness of an unknown version (format 99)"),
        ({"format": "new", "harness": "9.9.0"}, "harness 9.9.0 (format new)"),
        ({"format": None, "harness": "9.9.0"}, "harness 9.9.0 (format None)"),
    ],
)
def test_a_later_format_is_refused(record: dict[str, object], version: str) -> None:
    """The line names both versions and both formats, and what to do."""
    own = re.escape(f"run a: was written by {version}, this is harness {__version__} (format 2); ")
    with pytest.raises(InputError, match=f"{own}go on with it by that version$"):
        check_format("run a", record, 2)


def test_a_record_is_stamped_by_the_last_version_that_writes_it() -> None:
    """Number and version of an earlier writer give way; the rest of the record stays."""
    record = stamped({"format": 1, "harness": "0.1.0", "commit": "c"}, 2)
    assert record == {"format": 2, "harness": __version__, "commit": "c"}


def restamp(run: Path, number: int, version: str) -> None:
    """Make a run one that another version wrote."""
    record = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(
        json.dumps({**record, "format": number, "harness": version})
    )


@pytest.fixture
def later(finished: tuple[Harness, Path]) -> tuple[Harness, Path]:
    """A copy of a finished run by a later version, whose job has a key of that version's."""
    harness, calm = finished
    run = calm.with_name("later")
    if not run.exists():
        shutil.copytree(calm, run)
        restamp(run, 99, "9.9.0")
        (run / "job.toml").write_text((run / "job.toml").read_text() + "\n[new]\nkey = 1\n")
    return harness, run


@pytest.mark.parametrize("command", ["resume", "train", "several", "evaluate", "predict"])
def test_a_later_versions_run_is_refused(later: tuple[Harness, Path], command: str) -> None:
    """Exit code 2 and one line with both versions, rather than what its job file can't be."""
    harness, run = later
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words: list[object] = [command, run]
    if command in ("train", "several"):
        words = ["train", harness.folder / "bilstm.toml", "--run-id", run.name, *SHRUNK]
        shutil.copy(run.with_name("calm") / "job.toml", harness.folder / "bilstm.toml")
    if command == "several":  # runs of a batch are named by their seed too
        shutil.copytree(run, run.with_name("later-seed1"), dirs_exist_ok=True)
        words += ["--seeds", "1-2"]
    done = harness.run_here(*words, *(["good"] if command == "predict" else []))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert "was written by harness 9.9.0 (format 99), this is harness" in line
    assert "go on with it by that version: harness reproduce" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_readers_show_a_later_versions_run(later: tuple[Harness, Path]) -> None:
    """Commands that only look take from it what they can."""
    harness, run = later
    shown = harness.run_here("status", run, "--json")
    assert (shown.returncode, json.loads(shown.stdout)[0]["state"]) == (0, "finished")
    compared = harness.run_here("compare", run, "--no-baseline")
    assert compared.returncode == 0, compared.stderr
    assert "bilstm" in compared.stdout
    log = harness.run_here("logs", run)
    assert "it printed to the terminal where it was started" in log.stderr


@pytest.mark.full
def test_an_earlier_versions_run_goes_on_to_the_same_bytes(harness: Harness) -> None:
    """A run of harness 0.1.0 that was killed inside an epoch ends as an undisturbed one.

    One without a moving average, which was another one then.
    """
    plain = ("--set", "train.ema_momentum=0")
    calm = harness.train("gru", "calm", *plain)
    assert calm.returncode == 0, calm.stderr
    kill_at(harness, "gru", 16, *plain)
    run = harness.runs / "gru" / "killed"
    record = json.loads((run / "provenance.json").read_text())
    assert (record.pop("format"), record.pop("harness")) == (2, __version__)
    (run / "provenance.json").write_text(json.dumps(record))
    for path in run.glob("checkpoints/step-*.npz"):
        age(path)
    last = harness.run("resume", run)
    assert last.returncode == 0, last.stderr
    assert results(run) == results(harness.runs / "gru" / "calm")
    record = json.loads((run / "provenance.json").read_text())
    assert (record["format"], len(record["starts"])) == (2, 2)


def age(checkpoint: Path) -> None:
    """Make a checkpoint one of harness 0.1.0."""
    with np.load(checkpoint) as archive:
        arrays = {name: archive[name] for name in archive.files}
    progress = json.loads(arrays["progress"].tobytes())
    del progress["format"], progress["harness"], progress["is_ramped"]
    progress["right_sum"] = progress.pop("num_correct")
    arrays["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    with checkpoint.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


@pytest.mark.full
def test_a_later_versions_checkpoint_is_refused_not_skipped(harness: Harness) -> None:
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
