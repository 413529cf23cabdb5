"""Commands refuse bad input in one line, print what they did, and handle Ctrl-C."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from harness.errors import InputError
from harness.slurm import environment
from tests.conftest import JOBS, Harness, failing

LSTM = JOBS / "lstm.toml"
AT_ONCE = "harness: interrupted by Ctrl-C and ended at once; saved files are kept\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], ("trian", "Did you mean 'train'?")),
        (["train", "jobs/none.toml"], ("jobs/none.toml", "no such file")),
        (["train", LSTM, "--sede", "3"], ("--sede", "--seed")),
        (["train", LSTM, "--workers", "0"], ("--workers", "equal to 1. See harness train --help")),
        (["audit", "runs/a", "--epochs", "x"], ("--epochs", "valid integer")),
        (["tensorboard", "--hours", "nan"], ("--hours", "8760")),
        (["train", LSTM, "--seeds", "1,1"], ("--seeds 1,1", "contains seed 1 twice")),
        (["prune", JOBS], ("contains no run", "give runs, or a folder of runs")),
        (["train", LSTM, "--devices", "tpu"], ("--devices tpu", "gpu:4")),
        (["doctor", "--devices", "tpu"], ("--devices tpu",)),
        (["train", JOBS / "tune_lstm.toml"], ("a [search] table", "harness tune")),
        (["tune", LSTM], ("no [search] table", "harness train")),
        (["train", LSTM, "--data", "nowhere"], ("--data nowhere", "harness data fetch")),
        (["train", LSTM, "--full"], ("the full data is not in", "harness data fetch")),
        (["train", LSTM, "--run-id", "../x"], ("--run-id '../x'",)),
        (["resume", "runs/none"], ("runs/none", "no such folder")),
        (["resume", "."], ("is not a run's folder",)),
        (["compare", "--out", LSTM], ("--out", "is a file; specify a folder")),
        (["prune", "--runs", "none"], ("no folder none here", "--runs or HARNESS_RUNS")),
        (["tensorboard", "--runs", "none"], ("no folder none here",)),
        (["train", LSTM, "--runs", "a\udcff"], (r"a\udcff': should be UTF-8",)),
        (["compare"], ("no folder /", "runs here; change to the folder that contains it")),
        (["sweep", "show", "runs/none"], ("runs/none", "is not a sweep's folder")),
        (["sweep", "best", "s", "--workers", "2"], ("--workers",)),
        (["train", LSTM, "--set", "train.epochs"], ("; write --set train.epochs=VALUE",)),
        (["prune", ""], ("an argument is empty; check the variables of your shell",)),
        # A long name or number, deep nesting, an endless file.
        (["train", "x" * 300], ()),
        (["train", LSTM, "--devices", "cpu:" + "9" * 5000], ()),
        (["train", LSTM, "--set", "train.epochs=" + "[" * 3000], ()),
        (["train", "/dev/zero"], ()),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    harness: Harness, words: list[object], said: tuple[str, ...]
) -> None:
    """The line names input and remedy; nothing is written, and TensorFlow is not imported."""
    line = harness.refuse(*words)
    for part in said:
        assert part in line
    assert list(harness.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "variables", "named"),
    [
        (["status"], {}, "HARNESS_RUNS"),
        (["tensorboard"], {}, "HARNESS_RUNS"),
        (["status", "--runs", "runs"], {}, ""),
        (["status"], {"HARNESS_RUNS": "runs"}, ""),
        (["status"], {"SLURM_JOB_ID": "7"}, "HARNESS_RUNS"),  # as in a terminal of JupyterLab
        (["status"], {"SLURM_JOB_ID": "7", "HARNESS_BATCH_JOB": "7"}, ""),
        (["submit", LSTM, "--dry-run"], {}, "HARNESS_VENV, HARNESS_RUNS, HARNESS_DATA, SBATCH_QOS"),
        (["train", LSTM, "--runs", "r", "--devices", "x"], {"HARNESS_HERE": ""}, "HARNESS_DATA"),
    ],
)
def test_settings_of_site_sh_that_the_shell_lacks_are_named(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    words: list[object],
    variables: dict[str, str],
    named: str,
) -> None:
    """`submit` warns about all missing settings, other commands about those that they need."""
    site = harness.folder / "site.sh"
    site.write_text("export HARNESS_VENV=/v HARNESS_RUNS=/r\nexport HARNESS_DATA=/d SBATCH_QOS=q\n")
    monkeypatch.setattr(environment, "SITE", str(site))
    del harness.environment["HARNESS_RUNS"]
    harness.environment |= {"PATH": "/nowhere", **variables}  # without Slurm
    said = harness.run_here(*words).stderr
    hint = f"warning: {site} sets {named}, which this shell lacks; run: source {site}\n"
    assert said.count(hint) == said.count("this shell lacks") == bool(named), said


def test_a_refused_run_leaves_no_folder(harness: Harness) -> None:
    """Even the job's empty folder is removed; the folder of all runs stays."""
    (harness.runs / "lstm").mkdir(parents=True)
    harness.refuse("train", LSTM, "--devices", "tpu")
    assert list(harness.folder.rglob("*")) == [harness.runs]


def test_an_allocation_of_several_nodes_is_refused(harness: Harness) -> None:
    """Without srun, the nodes could not train one model together."""
    harness.environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    assert "2 nodes: needs srun, which" in harness.refuse(*harness.train_words("lstm", "never"))
    assert not harness.runs.exists()


@pytest.mark.parametrize("words", [[], ["train", "--help"], ["submit", "--help"]])
def test_help_is_quick_and_short(harness: Harness, words: list[str]) -> None:
    """The help imports no large library, fits on a screen of 50 lines, and has an example."""
    harness.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    done = harness.run(*words)
    assert done.returncode == 0
    assert "Usage: " in done.stdout
    assert 8 < done.stdout.count("\n") < 50
    assert "harness train" in done.stdout or "harness submit jobs/lstm.toml" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported  # Python has printed the imports
    assert not imported & {"tensorflow", "keras", "numpy", "sklearn"}


@pytest.mark.full
def test_a_runs_job_file_repeats_the_run(finished: tuple[Harness, Path]) -> None:
    """Standard error is empty, the last line has the next command, and both runs' bytes agree."""
    harness, run = finished
    done = harness.run("train", run / "job.toml", "--run-id", "again")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 3
    assert "SAMPLE" in lines[0]
    assert "SAMPLE" in done.stdout.split("tested on")[1]
    assert lines[-1].startswith("next         harness predict ")
    for name in ("model.keras", "tensorboard"):
        assert any(line.endswith(name) for line in lines)
    again = run.with_name("again")
    for name in ("model.keras", "predictions.npz"):
        assert (again / name).read_bytes() == (run / name).read_bytes()
    assert {path.name for path in again.iterdir()} == {
        *("job.toml", "provenance.json", "state.json", "metrics.jsonl", "timings.jsonl"),
        *("checkpoints", "tensorboard", "model.keras", "vocabulary.txt", "result.json"),
        *("predictions.npz", "validation_predictions.npz"),
    }
    assert len([path for path in again.rglob("*") if path.is_file()]) == 14
    provenance = json.loads((again / "provenance.json").read_text())
    assert provenance["kernels"] == {"bidirectional": "block"}
    numerics = {"tf32": False, "deterministic": True, "cublas_workspace": ":4096:8"}
    assert provenance["starts"][0].items() >= numerics.items()
    newest = max(path.stat().st_mtime_ns for path in again.rglob("*") if path.is_file())
    assert (again / "result.json").stat().st_mtime_ns == newest


@pytest.mark.full
def test_evaluate_gives_the_runs_own_scores(finished: tuple[Harness, Path]) -> None:
    """The saved model yields the scores that its run recorded."""
    harness, run = finished
    done = harness.run("evaluate", run, "--json")
    assert done.returncode == 0, done.stderr
    scores, result = json.loads(done.stdout), json.loads((run / "result.json").read_text())
    assert scores["confusion_matrix"] == result["confusion_matrix"]
    assert abs(scores["log_loss"] - result["log_loss"]) < 1e-6
    assert scores["data"].startswith("SAMPLE of IMDB, not the full")
    # `evaluate` uses the run's number of threads, because the last bits depend on this number.
    plan = json.loads((run / "provenance.json").read_text())["plan"]
    with mock.patch("harness.training.launch.computing", side_effect=InputError("here")) as begin:
        harness.refuse("evaluate", run)
    assert begin.call_args.args[1] == plan["threads"]


def test_ctrl_c_is_not_a_success(finished: tuple[Harness, Path]) -> None:
    """Ctrl-C during a wait for input gives exit code 75 and one line."""
    harness, run = finished
    command = subprocess.Popen(
        harness.command("predict", run),
        env=harness.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdin
    assert command.stdout
    command.stdin.write("a good film\n")
    command.stdin.flush()
    assert "positive" in command.stdout.readline()
    command.send_signal(signal.SIGINT)
    said, warned = command.communicate(timeout=60)
    assert (command.returncode, said) == (75, "")
    assert "interrupted" in warned
    assert warned.count("\n") == 1


HANGING = """
import os, sys, time
from harness.cli.main import main
from harness.tracking import run_dir
look = run_dir._look
def hang(folder, *args, **options):
    if folder.endswith("hangs"):
        os.write(2, b"asked\\n")  # unlike print, one write: several threads come here
        time.sleep(600)
    return look(folder, *args, **options)
run_dir._look = hang
sys.exit(main())
"""


@pytest.mark.parametrize("command", ["compare", "status"])
def test_ctrl_c_ends_a_search_on_a_disk_that_hangs(harness: Harness, command: str) -> None:
    """The process does not wait for the disk."""
    for number in range(20):
        (harness.runs / f"{number}hangs").mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, command],
        cwd=harness.folder,
        env=harness.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert process.stderr.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    try:
        said, warned = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, said) == (75, "")
    assert warned.replace("asked\n", "") == AT_ONCE


@pytest.mark.parametrize("words", [["compare"], ["prune"], ["compare", "--runs"]])
def test_a_folder_without_permission_is_refused(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """The exit code is 2, although `Path.is_dir` raises an error for such a folder."""
    for path in ("closed/run", Path("closed/run")):
        monkeypatch.setattr("os.stat", failing(os.stat, path, errno.EACCES))
    assert "closed/run" in harness.refuse(*words, "closed/run")


def test_an_unfinished_run_can_not_predict(harness: Harness) -> None:
    """The error names the command that continues the run, and is printed before a text is read."""
    folder = harness.runs / "lstm" / "begun"
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(LSTM.read_text())
    for words in (["predict", folder, "good"], ["predict", folder], ["evaluate", folder]):
        assert "harness resume" in harness.refuse(*words)
