"""Sweeps of other versions: what a later one wrote is looked at, and not gone on with."""

import errno
import json
from pathlib import Path

import pytest

from harness import __version__
from harness.errors import DiskError, InputError
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness
from tests.tuning.made_up_sweep import RANDOM, make_sweep, trial

VALUES = {"model.pooling": "last", "model.units": 16, "train.learning_rate": 0.001}


@pytest.fixture
def later(harness: Harness) -> Path:
    """A sweep that a later version wrote, whose search has a table of that version's."""
    folder = harness.runs / "tune_lstm" / "later"
    make_sweep(folder, RANDOM, trial(0, 0.8, values=VALUES), trial(1, 0.7, values=VALUES))
    (folder / "provenance.json").write_text(json.dumps({"format": 99, "harness": "9.9.0"}))
    return folder


@pytest.mark.parametrize("command", ["resume", "tune", "join", "retrain"])
def test_a_later_versions_sweep_is_refused(harness: Harness, later: Path, command: str) -> None:
    """Exit code 2, one line with both versions, nothing written."""
    job = harness.folder / "tune_lstm.toml"
    job.write_text(RANDOM)
    if command == "resume":  # which must not stumble over the search before it sees the version
        search = later / "search.toml"
        search.write_text(search.read_text() + "\n[new]\nkey = 1\n")
    words = {"resume": ["resume", later], "tune": ["tune", job, "--sweep-id", "later"]}
    before = {path: path.read_bytes() for path in later.rglob("*") if path.is_file()}
    done = harness.run_here(*words.get(command, ["sweep", command, later]))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert f"sweep {later}: was written by harness 9.9.0 (format 99)" in line
    assert f"this is harness {__version__} (format 4); go on with it by that version" in line
    assert {path: path.read_bytes() for path in later.rglob("*") if path.is_file()} == before


def test_readers_show_a_later_versions_sweep(harness: Harness, later: Path) -> None:
    """The leaderboard and the status are shown as far as they can be read."""
    shown = harness.run_here("sweep", "show", later)
    assert shown.returncode == 0, shown.stderr
    assert "0.8" in shown.stdout
    assert harness.run_here("status", later, "--json").returncode == 0


@pytest.mark.parametrize("command", ["resume", "tune", "join"])
@pytest.mark.parametrize(
    ("record", "how"),
    [
        (None, "whose workers met at a port"),
        ({"format": 2, "harness": "0.2.0"}, "whose workers met at a port"),
        ({"format": 3, "harness": "0.2.0"}, "which averaged weights otherwise"),
    ],
)
def test_an_unfinished_sweep_of_an_earlier_version_is_refused(
    harness: Harness, command: str, record: dict[str, object] | None, how: str
) -> None:
    """Exit code 2, one line with the version that goes on with it, nothing written."""
    folder = harness.runs / "tune_lstm" / "older"
    make_sweep(folder, RANDOM, trial(0, 0.8, values=VALUES))
    if record is None:
        record = {}
    else:
        (folder / "provenance.json").write_text(json.dumps(record))
    job = harness.folder / "tune_lstm.toml"
    job.write_text(RANDOM)
    words = {"resume": ["resume", folder], "tune": ["tune", job, "--sweep-id", "older"]}
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = harness.run_here(*words.get(command, ["sweep", command, folder]))
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "sweep " in line]
    version = record.get("harness", "0.1.0")
    assert f"was begun by harness {version} (format {record.get('format', 1)}), {how}" in line
    assert "go on with it by that version" in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_record_that_cant_be_read_says_nothing_of_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails is no reason to give a sweep up, and a broken record is called so."""
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    sweep.path("provenance.json").write_bytes(b"{")
    with pytest.raises(InputError, match=r"provenance.json is broken, .* put it back from a copy"):
        sweep.check_resumable()

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("harness.files.leased_dir.read_plain_file", fail)
    with pytest.raises(DiskError, match=r"provenance.json: can't be read: Input/output error"):
        sweep.check_resumable()


def test_a_finished_sweep_of_an_earlier_version_is_read(harness: Harness) -> None:
    """Its leaderboard, its winner and its status; there is nothing to go on with."""
    folder = harness.runs / "tune_lstm" / "older"
    make_sweep(folder, RANDOM, trial(0, 0.8, values=VALUES), finished=True)
    for words in (["show", folder], ["best", folder], ["join", folder]):
        done = harness.run_here("sweep", *words)
        assert done.returncode == (2 if words[0] == "join" else 0), done.stderr
    assert harness.run_here("status", folder, "--json").returncode == 0


def test_a_sweep_notes_the_version_that_writes_it(tmp_path: Path) -> None:
    """Which is then the one that goes on with it."""
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    for asked, starts in ((None, []), ({"SLURM_X": "1"}, [{"slurm_asked": {"SLURM_X": "1"}}])):
        sweep.write_format(asked)
        assert json.loads((tmp_path / "sweep/provenance.json").read_text()) == {
            "format": 4,
            "harness": __version__,
            "starts": starts,
        }
    SweepDirectory(sweep.folder).check_resumable()
