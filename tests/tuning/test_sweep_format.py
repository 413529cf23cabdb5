"""Sweeps of other versions and of other code are refused in one line."""

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


def test_a_sweep_of_another_version_is_refused(harness: Harness) -> None:
    """By one line with both versions, although its search has an unknown table; status shows it."""
    job, other = harness.folder / "tune_lstm.toml", harness.runs / "tune_lstm" / "other"
    job.write_text(RANDOM)
    make_sweep(other, RANDOM, trial(0, 0.8, values=VALUES), trial(1, 0.7, values=VALUES))
    (other / "provenance.json").write_text(json.dumps({"format": 99, "harness": "9.9.0"}))
    search = other / "search.toml"
    search.write_text(f"{search.read_text()}\n[new]\nkey = 1\n")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    commands: list[list[object]] = [["resume", other], ["tune", job, "--sweep-id", "other"]]
    commands += [["sweep", command, other] for command in ("show", "best", "join", "retrain")]
    for words in commands:
        done = harness.run_here(*words)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        (line,) = done.stderr.splitlines()
        assert f"sweep {other}: was written by harness 9.9.0 (format 99)" in line
        assert f"this is harness {__version__} (format {FORMAT})" in line
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    assert harness.run_here("status", other, "--json").returncode == 0


def test_an_unreadable_record_is_not_one_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says that the record is broken, or that the disk fails."""
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    sweep.path("provenance.json").write_bytes(b"{")
    with pytest.raises(InputError, match=r"provenance.json is broken, "):
        sweep.search()

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("harness.system.leased_dir.read_plain_file", fail)
    with pytest.raises(DiskError, match=r"provenance.json: can't be read: Input/output error"):
        sweep.search()


def test_only_the_code_that_began_a_sweep_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other code of this version is refused, unless a person resumes the search."""
    search = load_search(JOBS / "tune_lstm.toml")
    sweep = SweepDirectory(tmp_path / "runs/sweep")
    sweep.begin(search, open_sample())
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
