"""`harness prune`, and the files that a search removes itself."""

import errno
import json
import os
from pathlib import Path

import pytest

from harness.job.search import SEARCH_FILE
from harness.tracking.run_dir import RunDirectory
from harness.tuning import prune_runs
from harness.tuning.protocol import Trial
from harness.tuning.prune_runs import NUM_KEPT, KeptTrials, Pruned, prune_all, refusal
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness, failing
from tests.tuning.made_up_sweep import HYPERBAND, RANDOM, make_sweep, trial

KEPT = (
    *("job.toml", "provenance.json", "metrics.jsonl", "result.json", "predictions.npz"),
    *("model.keras", "vocabulary.txt", "timings.jsonl", "state.json"),
    "tensorboard/train/events.out.tfevents.1.a.1",
)
CHECKPOINT = "checkpoints/step-000000007.npz"
FREED = (CHECKPOINT, "checkpoints/.7.tmp.npz")


def make_run(folder: Path) -> RunDirectory:
    """Make a finished run; each of its files except the result has seven bytes."""
    for name in (*KEPT, *FREED):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    result = {"accuracy": 0.5, "dataset_checksum": "", "classes": ["negative", "positive"]}
    (folder / "result.json").write_text(json.dumps(result))
    return RunDirectory(folder)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link may lead to a run, to its checkpoints, or to a file."""
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other")
    (tmp_path / "link").symlink_to(other.folder)
    assert prune_all([tmp_path / "link"], really=True).left == [(tmp_path / "link", "is a link")]
    run.path(CHECKPOINT).unlink()
    run.path(CHECKPOINT).symlink_to(other.path("job.toml"))
    assert prune_all([run.folder], really=True).num_files == 1
    run.path(CHECKPOINT).unlink()
    run.path("checkpoints").rmdir()
    run.path("checkpoints").symlink_to(other.path("checkpoints"))
    assert prune_all([run.folder], really=True).num_files == 0
    assert files(other.folder) == {*KEPT, *FREED}


def test_only_finished_runs_of_this_user_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other runs are kept, and the reason is reported."""
    run = make_run(tmp_path / "run")
    assert refusal(run.folder) == ""
    run.path("result.json").write_text("{")
    assert refusal(run.folder) == "has a broken result.json"
    run.path("result.json").unlink()
    assert refusal(run.folder) == "is unfinished"
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert refusal(run.folder).startswith("belongs to ")
    assert prune_all([run.folder], really=True).num_files == 0


def made_up(folder: Path, toml: str = RANDOM) -> tuple[SweepDirectory, list[Trial]]:
    """A finished sweep: trials 0 to 7 with rising scores, a failed trial, an abandoned attempt."""
    trials = [*(trial(n, 0.5 + n / 100) for n in range(8)), trial(8, None, error="it broke")]
    sweep = make_sweep(folder, toml, *trials, finished=True)
    for n, k in (*((n, 1) for n in range(9)), (3, 2)):
        make_run(sweep.trial_run(n, k, 1).folder)
    sweep.trial_run(3, 2, 1).path("result.json").unlink()
    sweep.trial_run(8, 1, 1).path("result.json").unlink()
    return sweep, trials


def holding(sweep: SweepDirectory, name: str) -> str:
    """Return the trials that have a file of this name, each as a digit."""
    found = sweep.path("trials").rglob(Path(name).name)
    return "".join(sorted({path.relative_to(sweep.path("trials")).parts[0] for path in found}))


@pytest.mark.parametrize(("toml", "needed"), [(RANDOM, "34567"), (HYPERBAND, "01234567")])
def test_a_search_keeps_the_models_of_its_best_trials(
    tmp_path: Path, toml: str, needed: str
) -> None:
    """The other models are removed when trials end, in any order.

    Checkpoints that a trial may continue stay to the end.
    """
    sweep, trials = made_up(tmp_path / "s", toml)
    kept = KeptTrials(sweep, sweep.search(), Pruned())
    kept.trim(trials[:NUM_KEPT], is_over=False)
    assert holding(sweep, "model.keras") == "012345678"
    kept.trim([*trials[:7], trial(7, None, worker="w1")], is_over=False)
    assert holding(sweep, "model.keras") == "2345678"
    kept.trim(trials, is_over=False)
    assert (holding(sweep, "model.keras"), holding(sweep, CHECKPOINT)) == ("34567", needed)
    kept.trim(trials, is_over=True)
    assert holding(sweep, CHECKPOINT) == "34567"
    assert len(files(sweep.trial_run(0, 1, 1).folder)) == 6
    assert holding(sweep, "result.json") == "01234567"
    assert holding(sweep, "state.json") == "345678"  # 8: failed


def test_a_finished_sweep_is_pruned(tmp_path: Path) -> None:
    """The sweep keeps its best models, and the records of failed and abandoned attempts.

    An unfinished sweep is not pruned, because its trials may still need their checkpoints.
    """
    sweep, _ = made_up(tmp_path / "runs/tune/s")
    elsewhere = make_run(tmp_path / "elsewhere/seed1").folder
    sweep.path("trials/0/3").symlink_to(elsewhere.parent)
    before, result = files(sweep.folder), sweep.path("result.json").read_bytes()
    sweep.path("result.json").unlink()
    assert prune_all([sweep.folder], really=True).left == [(sweep.folder, "is unfinished")]
    by_trial = prune_all([sweep.path("trials")], really=True)
    assert by_trial.num_files == 0
    assert f"belongs to {sweep.folder}, which is unfinished" in dict(by_trial.left).values()
    sweep.path("result.json").write_bytes(result)
    search = sweep.search()
    raised = search.with_table(trials=search.table.trials + 1)
    sweep.path(SEARCH_FILE).write_text(raised.to_toml())
    assert prune_all([sweep.folder], really=True).left == [(sweep.folder, "is unfinished")]
    sweep.path(SEARCH_FILE).write_text(search.to_toml())
    assert files(sweep.folder) == before
    counted = prune_all([tmp_path / "runs"], really=False)
    assert counted.num_bytes == 7 * counted.num_files
    assert files(sweep.folder) == before
    assert prune_all([tmp_path / "runs"], really=True).num_files == counted.num_files
    assert len(before) - len(files(sweep.folder)) == counted.num_files > 10
    assert (holding(sweep, "model.keras"), holding(sweep, CHECKPOINT)) == ("34567", "34567")
    abandoned = sweep.trial_run(3, 2, 1)
    assert abandoned.path("state.json").exists()
    assert not abandoned.path("model.keras").exists()
    assert (elsewhere / CHECKPOINT).exists()


def test_the_command(harness: Harness, tmp_path: Path) -> None:
    """Without --yes nothing changes. `prune` names unfinished runs and refuses a missing folder."""
    runs = tmp_path / "some"
    finished, unfinished = make_run(runs / "lstm/a"), make_run(runs / "lstm/b")
    unfinished.path("result.json").unlink()
    before = files(runs)
    dry = harness.run_here("prune", "--runs", str(runs)).stdout
    assert "0.0 MB, 2 files of 1 finished runs can be removed with --yes" in dry
    assert f"{unfinished.folder} is unfinished" in dry
    assert files(runs) == before
    done = harness.run_here("prune", str(runs), "--yes").stdout
    assert "2 files of 1 finished runs removed; to make removed files again, run: harness" in done
    assert files(finished.folder) == {*KEPT}
    assert "nothing to remove in 1 finished runs" in harness.run_here("prune", str(runs)).stdout
    wrong = harness.refuse("prune", tmp_path / "none")
    assert "none: is not a folder that you can read; give runs" in wrong


def test_an_unreadable_run_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the unreadable run is reported."""
    stale, run = tmp_path / "stale", make_run(tmp_path / "run").folder
    monkeypatch.setattr(prune_runs, "refusal", failing(refusal, stale, errno.ESTALE))
    monkeypatch.setattr(prune_runs, "find_runs", lambda *_, **__: [[stale], [run]])
    done = prune_all([tmp_path], really=True)
    assert (done.num_runs, done.left) == (1, [(stale, "can't be read: Stale file handle")])
    assert not (run / CHECKPOINT).exists()
