"""An audit confirms honest runs, detects planted numbers, and changes no file of the run."""

import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness as package
from harness.errors import InputError
from tests.conftest import Harness, calm_run, results
from tests.training.flips import PLACES, plant_loss, plant_scores, train_with_flip
from tests.training.kills import kill_at


def contents(run: Path) -> dict[Path, tuple[bytes, int]]:
    """Return the content and the modification time of every file of a run."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.full
def test_a_killed_run_of_two_replicas_is_equal_to_the_byte(harness: Harness) -> None:
    """The audit's record is written to the auditor's folder of runs, not into the run."""
    words = ("--devices", "cpu:2")
    kill_at(harness, "bilstm", 16, *words)
    done = harness.train("bilstm", "killed", *words)
    assert done.returncode == 0, done.stderr
    run = harness.runs / "bilstm" / "killed"
    before = contents(run)
    done = harness.run("audit", run, "--full", "--runs", harness.folder / "mine")
    assert done.returncode == 0, done.stdout + done.stderr
    *_, sentence = done.stdout.splitlines()
    assert sentence.startswith(f"run {run}: the audit (full, ")
    assert sentence.endswith(" s) computed the same numbers as the run, to the byte")
    assert "differs" not in done.stdout
    assert "rounding" not in done.stdout
    assert contents(run) == before
    (kept,) = (harness.folder / "mine" / ".audits").iterdir()
    assert kept.stem == hashlib.sha256((run / "result.json").read_bytes()).hexdigest()
    assert json.loads(kept.read_text())["full"]["outcome"] == "equal"


@pytest.mark.full
def test_another_number_of_replicas_differs_by_measured_rounding(harness: Harness) -> None:
    """An audit on one replica confirms a run of two within rounding and detects planted numbers."""
    done = harness.train("lstm", "two", "--devices", "cpu:2")
    assert done.returncode == 0, done.stderr
    run = harness.runs / "lstm" / "two"
    audit = ("audit", run, "--devices", "cpu:1")
    done = harness.run(*audit, "--full")
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, sentence = done.stdout.splitlines()
    assert "computed the same numbers as the run, within rounding" in sentence
    assert any(row.startswith("model.keras") and " allowed" in row for row in rows)
    assert "the devices were 2 × CPU and are now 1 × CPU" in sentence
    assert any(
        re.search(r"measured here .*2 instead of 1 replicas: .*loss [0-9.e-]+, ", r) for r in rows
    )
    plant_loss(run, 1, 1e-3)
    done = harness.run(*audit)
    assert done.returncode == 1, done.stdout
    assert "differs in metrics.jsonl: epoch 1, loss by 0.001, " in done.stdout.splitlines()[-1]
    plant_loss(run, 1, -1e-3)
    plant_scores(run, accuracy=0.99)
    done = harness.run(*audit, "--quick")
    assert done.returncode == 1, done.stdout
    assert "differs in scores of predictions.npz: accuracy by " in done.stdout.splitlines()[-1]


def broken(name: str, content: str) -> Callable[[Path], object]:
    """Return a function that overwrites a file of a run."""
    return lambda run: (run / name).write_text(content)


def changed(name: str, **values: Any) -> Callable[[Path], object]:
    """Return a function that changes values in a JSON file of a run."""

    def change(run: Path) -> None:
        content = json.loads((run / name).read_text()) | values
        (run / name).write_text(json.dumps(content, indent=2) + "\n")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda run: (run / "job.toml").unlink(), "is not a run's folder, it contains no job.toml"),
        (lambda run: (run / "result.json").unlink(), "is unfinished (finished), so it has no"),
        (lambda run: (run / "model.keras").unlink(), "its model.keras is missing; train its job"),
        (changed("provenance.json", format=5), "was written by harness 0.3.0 (format 5)"),
        (changed("provenance.json", plan={"way": "magic"}), "the run's record has no valid plan"),
        (changed("provenance.json", starts=["x", 3, {}]), "its record is broken (starts.0)"),
        (changed("result.json", num_replicas="2"), "its record is broken (num_replicas)"),
        (changed("provenance.json", dataset={}), "its record is broken (dataset.checksum)"),
        (broken("provenance.json", "{"), "provenance.json is broken"),
        (broken("job.toml", "x = 1"), "job.toml"),
    ],
)
def test_a_run_that_cannot_be_audited_is_refused_in_one_line(
    finished: tuple[Harness, Path], tmp_path: Path, change: Any, message: str
) -> None:
    """The command exits with 2 before it imports TensorFlow, and writes no record."""
    harness, run = finished
    copy = tmp_path / "runs/bilstm/copy"
    shutil.copytree(run, copy)
    change(copy)
    done = harness.run_here("audit", copy, "--runs", tmp_path / "mine")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "mine").exists()


def test_a_broken_result_is_a_difference(finished: tuple[Harness, Path], tmp_path: Path) -> None:
    """A readable file that is not the result of a run is a difference, so the exit code is 1."""
    harness, run = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "result.json").write_text("{")
    done = harness.run_here("audit", copy)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


@pytest.mark.full
def test_a_job_with_code_runs_only_where_it_is_trusted(harness: Harness) -> None:
    """The owner of the folder proves nothing, because a copy belongs to the user who copied it."""
    toml = (calm_run(harness, "lstm") / "job.toml").read_text()
    (harness.folder / "own.py").write_text(
        "import keras\n\n\ndef stop():\n    open('mark', 'a').close()\n"
        "    return keras.callbacks.Callback()\n"
    )
    job = harness.folder / "job.toml"
    assert "callbacks = []" in toml
    job.write_text(toml.replace("callbacks = []", 'callbacks = ["own.py:stop"]'))
    done = harness.run("train", job, "--run-id", "own")
    assert done.returncode == 0, done.stderr
    (harness.folder / "mark").unlink()
    (run,) = harness.runs.glob("*/own")
    done = harness.run_here("audit", run)
    assert done.returncode == 2
    assert "its job contains the user's code (own.py), which an audit runs; read" in done.stderr
    assert not (harness.folder / "mark").exists()
    done = harness.run("audit", run, "--trust-code")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "s) computed the same numbers as the run in the first epoch, to the byte" in done.stdout
    assert (harness.folder / "mark").exists()


def test_from_python_a_difference_is_an_answer(
    finished: tuple[Harness, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`harness.audit` returns a difference, but raises InputError if a run can't be audited."""
    harness, run = finished
    for name, value in harness.environment.items():
        monkeypatch.setenv(name, value)
    audit = package.audit(run, quick=True, runs=tmp_path)
    assert (audit.outcome, audit.depth) == ("equal", "quick")
    assert "trained nothing; files, scores and model agree, to the byte" in audit.sentence
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    plant_scores(copy, f1=0.9999)
    audit = package.audit(copy, quick=True, runs=tmp_path)
    assert audit.outcome == "differs"
    assert "differs in scores of predictions.npz: f1 by " in audit.sentence
    result = json.loads((copy / "result.json").read_text())
    del result["f1"]
    (copy / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    assert package.audit(copy, quick=True, runs=tmp_path).outcome == "differs"
    changed("provenance.json", commit="0" * 40)(copy)
    audit = package.audit(copy, quick=True, runs=tmp_path)
    assert audit.outcome == "equal", "the other code may not have computed this score"
    (copy / "result.json").unlink()
    with pytest.raises(InputError, match="is unfinished"):
        package.audit(copy, quick=True, runs=tmp_path)


# Planted and honest runs


def audited(harness: Harness, run: Path, depth: str = "full") -> dict[str, Any]:
    """Audit a run, and return the record of the audit."""
    mine = harness.folder / "mine"
    done = harness.run("audit", run, f"--{depth}", "--runs", mine)
    checksum = hashlib.sha256((run / "result.json").read_bytes()).hexdigest()
    found: dict[str, Any] = json.loads((mine / ".audits" / f"{checksum}.json").read_text())[depth]
    code = {"equal": 0, "within rounding": 0, "differs": 1}[found["outcome"]]
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("training again") == (depth == "full")
    return found


def found_by(audit: dict[str, Any]) -> list[str]:
    """Return the depths of audit that detect a difference, judged by the checks of a full audit."""
    differing = [each for each in audit["checks"] if each["outcome"] == "differs"]
    quick = ("files", "data", "inputs", "exported epoch", "scores of", "model on")
    without = [each for each in differing if each["compared"].startswith(quick)]
    first = [each for each in differing if each["detail"].startswith("epoch 1, ")]
    depths = {"quick": without, "1 epoch": [*without, *first], "full": differing}
    return [depth for depth, seen in depths.items() if seen]


def flip(harness: Harness, place: str, number: int) -> tuple[Path, str]:
    """Make a run with one flipped bit; return the run and the place of the bit."""
    chance = random.Random(f"{place} {number}")  # noqa: S311 - not a secret
    run = harness.runs / "lstm" / f"{place}-{number}"
    calm = calm_run(harness, "lstm") if not (harness.runs / "lstm/calm").exists() else None
    if place == "gradient":
        return run, train_with_flip(harness, "lstm", run.name, chance)
    shutil.copytree(calm or harness.runs / "lstm/calm", run)
    return run, PLACES[place](run, chance)


@pytest.mark.full
@pytest.mark.parametrize(
    ("place", "depth"),
    [
        ("gradient", "full"),
        ("metrics", "full"),
        ("predictions", "quick"),
        ("model", "quick"),
        ("vocabulary", "quick"),
    ],
)
def test_a_flip_of_a_bit_is_found(harness: Harness, place: str, depth: str) -> None:
    """The bit is flipped in training, or in a finished run whose checksums are updated."""
    run, where = flip(harness, place, 0)
    assert results(run) != results(harness.runs / "lstm/calm") or place == "vocabulary", where
    assert audited(harness, run, depth)["outcome"] == "differs", where


@pytest.mark.slow
def test_thirty_flips_are_found(harness: Harness) -> None:
    """A full audit finds every flip that changes a file; `-s` prints what shorter audits find."""
    for place in ("gradient", *PLACES):
        for number in range(5):
            run, where = flip(harness, place, number)
            changes = place == "vocabulary" or results(run) != results(harness.runs / "lstm/calm")
            found = found_by(audited(harness, run))
            print(f"{place:12} {where:45} {', '.join(found) if changes else 'no byte'}")  # noqa: T201
            assert ("full" in found) == changes


HONEST = {
    "lstm": (),
    "bilstm": ("--set", "data.bucket=true"),
    "gru": ("--set", "train.keep=last", "--set", "train.xla=off"),
    "rnn": ("--set", "train.early_stopping_patience=1", "--set", "train.learning_rate=0.01"),
    "best": ("--set", "model.ngram_ratios=2", "--set", "model.embedding_dim=8"),
}


def check_honest(
    harness: Harness, job: str, devices: str, *, kills: int = 0, seed: int = 1
) -> None:
    """Check that an audit finds a run equal that was killed `kills` times."""
    words = [*HONEST[job], "--devices", devices, "--seed", str(seed)]
    for number in range(kills):
        kill_at(harness, job, 5 + 13 * number, *words)
    done = harness.train(job, "killed", *words)
    assert done.returncode == 0, done.stderr
    run = harness.runs / job / "killed"
    assert audited(harness, run)["outcome"] == "equal"
    shutil.rmtree(run)


@pytest.mark.full
@pytest.mark.parametrize("job", [pytest.param("gru", marks=pytest.mark.slow), "best"])
def test_an_honest_run_is_equal_to_the_byte(harness: Harness, job: str) -> None:
    """The runs use Keras's own layers (gru) and n-gram ratios (best)."""
    check_honest(harness, job, "cpu:1", seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("job", [*HONEST])
def test_thirty_honest_runs_are_equal_to_the_byte(harness: Harness, job: str) -> None:
    """Each job trains on one and on two replicas, with zero, one and two kills."""
    for devices in ("cpu:1", "cpu:2"):
        for kills in range(3):
            check_honest(harness, job, devices, kills=kills, seed=kills + 1)
