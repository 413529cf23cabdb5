"""The folder of a sweep: how it begins and continues, its leaderboard and its format."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import __version__
from harness.data.sources import open_sample
from harness.data.vocabulary import vectors_checksum
from harness.errors import DiskError, InputError, RunError
from harness.job.search import SearchSpec, load_search
from harness.system.console import Console
from harness.tracking.provenance import installed_packages, sources_checksum
from harness.tracking.run_dir import FORMAT
from harness.tuning import tune
from harness.tuning.best_trial import retrain
from harness.tuning.leaderboard import leaderboard_csv, result_of
from harness.tuning.sweep_dir import SweepDirectory
from harness.tuning.worker import WorkerRequest
from tests.conftest import JOBS, Harness
from tests.tuning.made_up_sweep import RANDOM, add_trial, make_sweep, trial


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run `harness tune` until it would start its worker."""
    monkeypatch.setattr(tune, "WorkerPool", lambda *_, **__: pytest.fail("begun"))

    def begin(sweep: SweepDirectory, search: SearchSpec, *, resumes: bool = False) -> None:
        request, console = WorkerRequest(num_workers=1), Console()
        with pytest.raises(pytest.fail.Exception, match="begun"):
            tune.tune(sweep, search, request, console=console, full=False, resumes=resumes)

    return begin


@pytest.mark.parametrize(
    ("before", "now", "then"),
    [(2, 2, 2), (2, 3, 3), (2, 0, 0), (0, 0, 0), (3, 2, 3), (0, 8, 0)],
)
def test_a_command_never_lowers_the_number_of_trials(
    tmp_path: Path, begin: Callable[..., None], before: int, now: int, then: int
) -> None:
    """`search.trials = 0` means all trials. A requeued job requests its first number again."""
    grid = RANDOM.replace("{ min = 0.0001, max = 0.01, log = true }", "[0.001, 0.01]")
    grid = grid.replace('"random"', '"grid"')
    (tmp_path / "grid.toml").write_text(grid)
    make_sweep(tmp_path / "tune_lstm/a", grid.replace("trials = 24", f"trials = {before}"))
    search = load_search(tmp_path / "grid.toml", [f"search.trials={now}"])
    sweep = SweepDirectory.new(tmp_path, search, "a")
    begin(sweep, search)
    assert sweep.search().table.trials == then


def test_parallel_is_fixed_when_a_sweep_begins(tmp_path: Path) -> None:
    """A later command may omit `parallel`, but may not change it."""
    file, guided = tmp_path / "guided.toml", RANDOM.replace('"random"', '"bayesian"')
    file.write_text(guided)
    sweep = make_sweep(tmp_path / "s", guided.replace("[search]", "[search]\nparallel = 8"))
    request = load_search(file)
    sweep.check_search(request)
    with pytest.raises(InputError, match=r"\(search.parallel was 8 and is 6\)"):
        sweep.check_search(load_search(file, ["search.parallel=6"]))
    assert tune.settled(request, 3).table.parallel == 6
    assert tune.settled(request, 6000) == load_search(file, ["search.parallel=10000"])
    assert tune.settled(sweep.search(), 3).table.parallel == 8
    assert tune.settled(load_search(file, ["search.tuner=random"]), 3).table.parallel == 0


def test_a_search_without_a_finished_trial_has_no_result(tmp_path: Path) -> None:
    """The error quotes the first error of a trial."""
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    for none, why in (
        ([trial(2, None, error="it broke")], "it broke"),
        ([], "the search has no trials"),
    ):
        with pytest.raises(RunError, match=f"no trial finished: {why}"):
            result_of(sweep, sweep.search(), none)


def test_the_leaderboard_has_all_trials(tmp_path: Path) -> None:
    """The table lists finished, running, waiting and failed trials; no cell is a formula."""
    trials = [
        trial(0, 0.5, values={"model.units": 16, "train.learning_rate": 0.1 + 0.2}),
        trial(1, None, error="too\nlarge"),
        trial(2, None, worker="w1"),
        trial(3, None),
    ]
    sweep = make_sweep(tmp_path / "sweep", RANDOM, *trials)
    assert sweep.trials() == trials
    text = leaderboard_csv(trials, sweep.search())
    lines = text.decode().splitlines()
    assert lines[0].startswith("rank,trial,status,val_accuracy,model.pooling,model.units,train.l")
    assert [line.split(",")[:4] for line in lines[1:]] == [
        *(["1", "0", "finished", "0.5"], ["", "2", "running", ""]),
        *(["", "3", "waiting", ""], ["", "1", "failed", ""]),
    ]
    assert lines[1].endswith(",16,0.3,3,2.0,61.0,1000,,,0/1")
    assert lines[2].endswith(",w1,,")
    assert lines[4].endswith(",too large,1/1")
    assert b",'=cmd|A1," in leaderboard_csv([trial(0, None, error="=cmd|A1")], sweep.search())


def begun(folder: Path) -> SweepDirectory:
    sweep = SweepDirectory(folder)
    sweep.begin(load_search(JOBS / "tune_lstm.toml"), open_sample())
    return sweep


def test_searches_that_begin_in_one_second_have_different_folders(tmp_path: Path) -> None:
    """Otherwise the second search would be refused, or would join the first."""
    search = load_search(JOBS / "tune_lstm.toml")
    folders = {SweepDirectory.new(tmp_path, search, None).folder for _ in range(20)}
    assert len(folders) == 20


def test_only_the_first_command_begins_a_sweep(tmp_path: Path) -> None:
    """The folder may exist and be empty, because a program has reserved it."""
    (tmp_path / "runs/a").mkdir(parents=True)
    first = begun(tmp_path / "runs/a").path("search.toml").stat()
    assert begun(tmp_path / "runs/a").path("search.toml").stat().st_ino == first.st_ino
    search = load_search(JOBS / "tune_lstm.toml")
    assert not [*SweepDirectory.open(tmp_path / "runs/a").search().changes(search)]
    assert not list((tmp_path / "runs").glob(".*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_sweep_of_another_user_is_refused(tmp_path: Path) -> None:
    """One line names the owner."""
    folder = begun(tmp_path / "runs/a").folder
    os.chown(folder, 12345, -1)
    with pytest.raises(InputError, match="belongs to 12345, and only its owner may write to it"):
        begun(folder)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """The folder remains unchanged. A sweep's id is no path."""
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/notes.txt").touch()
    with pytest.raises(InputError, match=r"contains no search.toml, .* choose another --sweep-id"):
        begun(tmp_path / "runs/a")
    assert [path.name for path in (tmp_path / "runs/a").iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match=r"--sweep-id 'a/b': should be .*letters"):
        SweepDirectory.new(tmp_path, load_search(JOBS / "tune_lstm.toml"), "a/b")


@pytest.mark.parametrize("number", [errno.ENOSPC, 0])
def test_a_disk_that_cannot_create_a_name_once_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The disk is full, or lets a rename replace a non-empty folder (number 0)."""
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if number:
            raise OSError(number, os.strerror(number), str(path))
        shutil.rmtree(target, ignore_errors=True)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DiskError, match=r"choose .* --runs") as refused:
        begun(tmp_path / "runs/a")
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "runs").iterdir())


def test_a_sweep_of_another_version_is_refused(harness: Harness) -> None:
    """One line names both versions, despite an unknown table in search.toml; `status` works."""
    job, other = harness.folder / "tune_lstm.toml", harness.runs / "tune_lstm" / "other"
    job.write_text(RANDOM)
    make_sweep(other, RANDOM, trial(0, 0.8), trial(1, 0.7))
    (other / "provenance.json").write_text(json.dumps({"format": 99, "harness": "9.9.0"}))
    search = other / "search.toml"
    search.write_text(f"{search.read_text()}\n[new]\nkey = 1\n")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    commands: list[list[object]] = [["resume", other], ["tune", job, "--sweep-id", "other"]]
    commands += [["sweep", command, other] for command in ("show", "best", "join", "retrain")]
    for words in commands:
        line = harness.refuse(*words)
        assert f"sweep {other}: was written by harness 9.9.0 (format 99)" in line
        assert f"this is harness {__version__} (format {FORMAT})" in line
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    assert harness.run_here("status", other, "--json").returncode == 0


def test_only_the_code_that_began_a_sweep_continues_it(
    tmp_path: Path,
    begin: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Other code of this version is refused, unless a person resumes the search.

    The command's first line names `parallel`, which is fixed from then on: twice the workers of all
    tasks of an array. A command outside Slurm keeps the record of the resources that the last Slurm
    job requested.
    """
    search = load_search(JOBS / "tune_lstm.toml")
    sweep = SweepDirectory(tmp_path / "my runs/sweep")
    monkeypatch.setattr(tune, "num_tasks_of_array", lambda _: 4)
    begin(sweep, search)
    assert json.loads(sweep.path("provenance.json").read_text()) == {
        "format": FORMAT,
        "harness": __version__,
        "sources_sha256": sources_checksum(),
        "packages": installed_packages(),
        "dataset": open_sample().record(),
        "starts": [],
    }
    said = capfd.readouterr()
    assert "asha, 24 trials, workers of this command: 1, parallel = 8, data: SAMPLE" in said.out
    assert "the code of harness has changed" not in said.err
    starts = [{"slurm_asked": {"gpus": "4"}}]
    record = sweep.read_json("provenance.json") | {"sources_sha256": "0" * 64, "starts": starts}
    sweep.write_json("provenance.json", record)
    before = {path: path.stat().st_mtime_ns for path in sweep.folder.rglob("*")}
    refusal = r"^sweep .*: the code of harness has changed .* another .*: harness resume '.*sweep'"
    with pytest.raises(InputError, match=refusal):
        begin(sweep, search)
    assert {path: path.stat().st_mtime_ns for path in sweep.folder.rglob("*")} == before
    with pytest.raises(InputError, match=refusal):
        begin(sweep, search.with_table(trials=30))
    record["packages"] |= {"numpy": "1.0"}
    sweep.write_json("provenance.json", record)
    begin(sweep, search, resumes=True)
    said = capfd.readouterr()
    assert "numpy was 1.0 and is now" in said.err
    assert "the code of harness has changed since the sweep began" in said.err
    assert "30 trials" in said.out
    assert sweep.read_json("provenance.json")["starts"] == starts


def test_a_search_whose_word_vectors_changed_is_refused(
    tmp_path: Path, begin: Callable[..., None]
) -> None:
    """Nobody joins, raises, resumes or retrains it until the file has its old content again."""
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("the 1 2 3\n")
    settings = ["model.embedding_dim=3", f"model.embeddings={vectors}"]
    search = load_search(JOBS / "tune_lstm.toml", settings)
    sweep = SweepDirectory(tmp_path / "sweep")
    begin(sweep, search)
    checksum = vectors_checksum(vectors)
    assert sweep.read_json("provenance.json")["embeddings"] == checksum
    add_trial(sweep, trial(0, 0.8))
    vectors.write_text("the 1 2 4\n")
    before = {path: path.stat().st_mtime_ns for path in sweep.folder.rglob("*")}
    said = (
        f"^sweep {sweep.folder}: model.embeddings {vectors} has changed since the sweep began "
        rf"\(checksum then {checksum[:12]}, now .*\); restore the file, or begin another sweep$"
    )
    for asked in (search, search.with_table(trials=48)):
        for resumes in (False, True):
            with pytest.raises(InputError, match=said):
                begin(sweep, asked, resumes=resumes)
    with pytest.raises(InputError, match=said):
        retrain(sweep, (1,), data=None, workers=None, console=Console())
    assert {path: path.stat().st_mtime_ns for path in sweep.folder.rglob("*")} == before
    vectors.write_text("the 1 2 3\n")
    begin(sweep, search)
