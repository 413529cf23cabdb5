"""What can be made again of runs and of a sweep, and its removal."""

import errno
import json
import os
from pathlib import Path

import pytest

from harness.tracking.run_dir import RunDirectory
from harness.tuning import prune_runs
from harness.tuning.protocol import Trial
from harness.tuning.prune_runs import (
    NUM_KEPT,
    OF_A_RUN,
    OF_A_TRIAL,
    KeptTrials,
    prune,
    prune_all,
    refusal,
)
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness
from tests.tuning.made_up_sweep import HYPERBAND, RANDOM, make_sweep, trial

KEPT = (
    *("job.toml", "provenance.json", "metrics.jsonl", "result.json", "predictions.npz"),
    *("model.keras", "vocabulary.txt", "timings.jsonl", "state.json"),
    *("tensorboard/events.out.tfevents.1.a.1", "tensorboard/train/events.out.tfevents.1.a.1"),
)
FREED = (
    *("checkpoints/step-000000007.npz", "tensorboard/train/.5.tmp", "tensorboard/train/.6.tmp"),
    "checkpoints/.7.tmp.npz",
)


def make_run(folder: Path) -> RunDirectory:
    """A finished run of files of seven bytes, but for its result."""
    for name in (*KEPT, *FREED):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    result = {"accuracy": 0.5, "dataset_checksum": "", "classes": ["negative", "positive"]}
    (folder / "result.json").write_text(json.dumps(result))
    return RunDirectory(folder)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_can_be_made_again_goes_and_all_else_stays(tmp_path: Path) -> None:
    """First only counted, then removed, then nothing is left to remove."""
    run = make_run(tmp_path / "run")
    for really in (False, True):
        assert files(run.folder) == {*KEPT, *FREED}
        amount = prune(run.folder, OF_A_RUN, really=really)
        assert amount.num_files == {"checkpoints": 1, "half-written files": 3}
        assert amount.num_bytes.total() == 7 * len(FREED)
    assert files(run.folder) == {*KEPT}
    assert not prune(run.folder, OF_A_RUN, really=True).num_files
    prune(run.folder, OF_A_TRIAL, really=True)
    assert len(files(run.folder)) == 7


def test_nothing_goes_through_a_link(tmp_path: Path) -> None:
    """Neither a linked folder, nor one in it, nor a linked file; a link is no run either."""
    run = make_run(tmp_path / "run")
    other = make_run(tmp_path / "other")
    (tmp_path / "link").symlink_to(other.folder)
    assert not prune(tmp_path / "link", OF_A_RUN, really=True).num_files
    assert refusal(tmp_path / "link") == "is a link"
    for path in run.path("checkpoints").iterdir():
        path.unlink()
    run.path("checkpoints").rmdir()
    run.path("checkpoints").symlink_to(other.path("checkpoints"))
    run.path("tensorboard/train/.5.tmp").unlink()
    run.path("tensorboard/train/.5.tmp").symlink_to(other.path("job.toml"))
    amount = prune(run.folder, OF_A_RUN, really=True)
    assert amount.num_files == {"half-written files": 1}
    assert files(other.folder) == {*KEPT, *FREED}


def test_only_own_finished_runs_are_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a whole result, or of another user, a run is left as it is, with the reason."""
    run = make_run(tmp_path / "run")
    assert refusal(run.folder) == ""
    run.path("result.json").write_text("{")
    assert refusal(run.folder) == "has a broken result.json"
    run.path("result.json").unlink()
    assert refusal(run.folder) == "is unfinished"
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert refusal(run.folder).startswith("belongs to ")
    assert not prune(run.folder, OF_A_RUN, really=True).num_files


CHECKPOINT = "checkpoints/step-000000007.npz"


def made_up(folder: Path, toml: str = RANDOM) -> tuple[SweepDirectory, list[Trial]]:
    """A finished sweep of eight trials, the later the better, and an attempt that was given up."""
    trials = [*(trial(n, 0.5 + n / 100) for n in range(8)), trial(8, None, error="it broke")]
    sweep = make_sweep(folder, toml, *trials, finished=True)
    for n, k in (*((n, 1) for n in range(9)), (3, 2)):
        make_run(sweep.trial_run(n, k, 1).folder)
    sweep.trial_run(3, 2, 1).path("result.json").unlink()
    sweep.trial_run(8, 1, 1).path("result.json").unlink()
    return sweep, trials


def holding(sweep: SweepDirectory, name: str) -> list[str]:
    found = [path for path in sweep.path("trials").rglob(Path(name).name) if path.is_file()]
    return sorted({path.relative_to(sweep.path("trials")).parts[0] for path in found})


def test_a_search_keeps_the_models_of_its_best(tmp_path: Path) -> None:
    """Whatever the order in which trials end; one that falls behind goes, once."""
    sweep, trials = made_up(tmp_path / "s")
    kept = KeptTrials(sweep, sweep.search())
    kept.trim(trials[:NUM_KEPT])
    assert holding(sweep, "model.keras") == list("012345678")
    kept.trim([*trials[:7], trial(7, None, worker="w1")])
    assert holding(sweep, "model.keras") == list("2345678")
    kept.trim(trials)
    assert holding(sweep, "model.keras") == list("34567")
    assert holding(sweep, CHECKPOINT) == list("34567")
    assert len(files(sweep.trial_run(0, 1, 1).folder)) == 7
    assert holding(sweep, "result.json") == list("01234567")


def test_trials_that_others_go_on_from_keep_checkpoints_to_the_end(tmp_path: Path) -> None:
    """Their models go at once, their checkpoints when no trial can be promoted any more."""
    sweep, trials = made_up(tmp_path / "s", HYPERBAND)
    kept = KeptTrials(sweep, sweep.search())
    kept.trim(trials)
    assert holding(sweep, "model.keras") == list("34567")
    assert holding(sweep, CHECKPOINT) == list("01234567")
    kept.trim(trials, is_over=True)
    assert holding(sweep, CHECKPOINT) == list("34567")


def test_pruning_a_finished_sweep_keeps_the_best_models(tmp_path: Path) -> None:
    """And their checkpoints; of attempts that were given up or failed the records stay."""
    sweep, _ = made_up(tmp_path / "runs/tune/s")
    before = files(sweep.folder)
    counted = prune_all([tmp_path / "runs"], really=False)
    assert files(sweep.folder) == before
    removed = prune_all([tmp_path / "runs"], really=True)
    assert (removed.num_files, removed.num_bytes) == (counted.num_files, counted.num_bytes)
    assert len(before) - len(files(sweep.folder)) == removed.num_files.total() > 50
    assert holding(sweep, "model.keras") == list("34567")
    assert holding(sweep, CHECKPOINT) == list("34567")
    assert sweep.trial_run(3, 2, 1).path("state.json").exists()
    assert not sweep.trial_run(3, 2, 1).path("model.keras").exists()


def test_the_leaderboard_file_is_never_read(harness: Harness) -> None:
    """A broken one changes nothing: the trials are."""
    sweep, _ = made_up(harness.runs / "tune/s")
    sweep.path("leaderboard.csv").write_bytes(b"trial\xff,status\n1,finished\n")
    assert "finished runs removed; " in harness.run_here("prune", "--yes").stdout
    assert holding(sweep, "model.keras") == list("34567")
    for command in ("show", "best"):
        assert harness.run_here("sweep", command, sweep.folder).returncode == 0


def test_trials_that_cant_be_read_are_not_none(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a finished search nobody is told to go on with it, and nothing of it is removed."""
    sweep, _ = made_up(harness.runs / "tune/s")
    before, read = files(sweep.folder), Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "trial.json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    for command in ("show", "best", "retrain"):
        done = harness.run_here("sweep", command, sweep.folder)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "trials: can't be read: Input/output error" in done.stderr
    told = f"unchanged: {sweep.folder} can't be read: "
    assert told in harness.run_here("prune", "--yes").stdout
    assert files(sweep.folder) == before


def test_an_unfinished_sweep_is_left_alone(tmp_path: Path) -> None:
    """And a trial behind a link in any."""
    sweep, _ = made_up(tmp_path / "runs/tune/s")
    elsewhere = make_run(tmp_path / "elsewhere/0/1/seed1").folder
    link = sweep.path("trials", "9")
    link.symlink_to(elsewhere.parents[1])
    prune_all([tmp_path / "runs"], really=True)
    assert (elsewhere / CHECKPOINT).exists()
    sweep.path("result.json").unlink()
    before = files(sweep.folder)
    done = prune_all([sweep.folder], really=True)
    assert "unfinished" in done.left[0][1]
    assert files(sweep.folder) == before


@pytest.mark.full
def test_the_command_says_what_it_would_do_and_does_it_when_told(
    harness: Harness, tmp_path: Path
) -> None:
    """Dry by default; unfinished runs are named; a wrong folder is one line and exit code 2."""
    runs = tmp_path / "some"
    done, unfinished = make_run(runs / "lstm/a"), make_run(runs / "lstm/b")
    unfinished.path("result.json").unlink()
    before = files(runs)
    dry = harness.run_here("prune", "--runs", str(runs)).stdout
    assert "can be removed by --yes" in dry
    assert f"{unfinished.folder} is unfinished" in dry
    assert files(runs) == before
    told = harness.run_here("prune", str(runs), "--yes").stdout
    assert "4 files of 1 finished runs removed; harness train RUN/job.toml makes them again" in told
    assert len(files(done.folder)) == len(files(unfinished.folder)) - 3
    assert "nothing to remove in 1 finished runs" in harness.run_here("prune", str(runs)).stdout
    wrong = harness.run_here("prune", str(tmp_path / "none"))
    assert wrong.returncode == 2
    assert "no such folder" in wrong.stderr.splitlines()[-1]


def test_a_run_that_goes_away_meanwhile_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that can't be read; the others are pruned and counted."""
    gone, stale = tmp_path / "gone", tmp_path / "stale"
    run = make_run(tmp_path / "run").folder

    def refuse(folder: Path) -> str:
        if folder == stale:
            raise OSError(errno.ESTALE, "Stale file handle")
        return refusal(folder)

    monkeypatch.setattr(prune_runs, "refusal", refuse)
    monkeypatch.setattr(prune_runs, "find_runs", lambda *_, **__: iter([gone, stale, run]))
    done = prune_all([tmp_path], really=True)
    assert (done.num_runs, done.left) == (1, [(stale, "can't be read: Stale file handle")])
    assert not (run / CHECKPOINT).exists()
