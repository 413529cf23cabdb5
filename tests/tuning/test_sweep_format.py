"""Sweeps of other versions are refused in one line that names the version to use."""

import errno
import json
from pathlib import Path

import pytest

from harness import __version__
from harness.data.sources import open_sample
from harness.errors import DiskError, InputError
from harness.job.search import load_search
from harness.system.console import Console
from harness.tracking.provenance import sources_checksum
from harness.tracking.run_dir import FORMAT
from harness.tuning import tune
from harness.tuning.pool import WorkerRequest
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import JOBS, Harness
from tests.tuning.made_up_sweep import RANDOM, make_sweep, trial

VALUES = {"model.pooling": "last", "model.units": 16, "train.learning_rate": 0.001}


@pytest.fixture(params=[(99, "9.9.0"), (4, "0.2.0")], ids=["later", "earlier"])
def other(harness: Harness, request: pytest.FixtureRequest) -> Path:
    """A sweep that another version wrote."""
    number, version = request.param
    folder = harness.runs / "tune_lstm" / "other"
    make_sweep(folder, RANDOM, trial(0, 0.8, values=VALUES), trial(1, 0.7, values=VALUES))
    (folder / "provenance.json").write_text(json.dumps({"format": number, "harness": version}))
    return folder


@pytest.mark.parametrize("command", ["resume", "tune", "show", "best", "join", "retrain"])
def test_another_versions_sweep_is_refused(harness: Harness, other: Path, command: str) -> None:
    """Exit code 2, one line with both versions, nothing written."""
    job = harness.folder / "tune_lstm.toml"
    job.write_text(RANDOM)
    # Its search may have a table of that version's, and no command stumbles over it.
    search = other / "search.toml"
    search.write_text(search.read_text() + "\n[new]\nkey = 1\n")
    record = json.loads((other / "provenance.json").read_text())
    words = {"resume": ["resume", other], "tune": ["tune", job, "--sweep-id", "other"]}
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    done = harness.run_here(*words.get(command, ["sweep", command, other]))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    written = f"was written by harness {record['harness']} (format {record['format']})"
    assert f"sweep {other}: {written}" in line
    assert f"this is harness {__version__} (format {FORMAT}); continue it with that version" in line
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_status_shows_another_versions_sweep(harness: Harness, other: Path) -> None:
    """As far as it can be read."""
    assert harness.run_here("status", other, "--json").returncode == 0


def test_a_record_that_cant_be_read_says_nothing_of_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails is no reason to give a sweep up, and a broken record is called so."""
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    sweep.path("provenance.json").write_bytes(b"{")
    with pytest.raises(InputError, match=r"provenance.json is broken, .* restore it from a copy"):
        sweep.search()

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("harness.system.leased_dir.read_plain_file", fail)
    with pytest.raises(DiskError, match=r"provenance.json: can't be read: Input/output error"):
        sweep.search()


def test_a_sweep_goes_on_with_the_code_that_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other code of this version is refused in a line, unless a person resumes the search."""
    search = load_search(JOBS / "tune_lstm.toml")
    sweep = SweepDirectory(tmp_path / "runs/sweep")
    assert sweep.begin(search, open_sample())
    assert json.loads(sweep.path("provenance.json").read_text()) == {
        "format": FORMAT,
        "harness": __version__,
        "sources_sha256": sources_checksum(),
        "dataset": open_sample().record(),
        "starts": [],
    }
    monkeypatch.setattr(tune, "WorkerPool", lambda *_, **__: pytest.fail("begun"))
    request, console = WorkerRequest(num_workers=1), Console()
    with pytest.raises(pytest.fail.Exception, match="begun"):
        tune.tune(sweep, search, request, console=console)
    assert "other code" not in capfd.readouterr().err
    record = sweep.read_json("provenance.json") | {"sources_sha256": "0" * 64}
    sweep.write_json("provenance.json", record)
    before = {path: path.stat().st_mtime_ns for path in sweep.folder.rglob("*")}
    refusal = r"^sweep .*: other code began it, .*begin another sweep, .*: harness resume "
    with pytest.raises(InputError, match=refusal):
        tune.tune(sweep, search, request, console=console)
    assert {path: path.stat().st_mtime_ns for path in sweep.folder.rglob("*")} == before
    with pytest.raises(pytest.fail.Exception, match="begun"):
        tune.tune(sweep, search, request, console=console, resumes=True)
    assert "other code began it, so scores may not be comparable" in capfd.readouterr().err
