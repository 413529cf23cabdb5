"""The Python API gives the same runs and refusals as the command line, without side effects."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import harness as package
from harness.errors import InputError, Interrupted, RunError
from harness.slurm import pool
from harness.tracking.audits import EQUAL, keep_audit
from tests.conftest import JOBS, PROJECT, Harness
from tests.made_up_runs import write_run, write_scored_run
from tests.report.small_data import small_data
from tests.tuning.made_up_sweep import RANDOM, make_sweep, trial

LSTM = JOBS / "lstm.toml"
README = PROJECT / "jobs/README.md"


@pytest.fixture
def here(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder. This process has the environment of the tests' commands."""
    for name, value in harness.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HARNESS_RUNS")
    monkeypatch.chdir(harness.folder)
    return harness.folder


def test_the_import_is_cheap() -> None:
    """`import harness` imports no large library."""
    slow = {"numpy", "pydantic", "tensorflow", "typer"}
    code = f"import sys, harness; print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ("train.epochs=1", {}, "settings = 'train.epochs=1': should be a dictionary, such as"),
        ({"train": {"epoch": 1}}, {}, "no key train.epoch; did you mean train.epochs"),
        ({"train.epochs": "many"}, {}, '--set train.epochs="many": should be an integer'),
        ({"train.epochs": None}, {}, "train.epochs"),
        ({"model.units": [1, 2]}, {}, "--set model.units=[1, 2]: should be an integer"),
        ({}, {"seeds": "1-2"}, "seeds = '1-2': is not an argument; call the function once"),
        ({"train.seed": 7}, {"seed": 2}, "--set train.seed=7: can't be combined with seed 2 from"),
        ({}, {"colour": "red"}, "No such option: --colour"),
    ],
)
def test_bad_arguments_are_refused(
    here: Path, capfd: pytest.CaptureFixture[str], settings: Any, options: Any, message: str
) -> None:
    """The message is that of the command; it is raised and not printed, and nothing is written."""
    with pytest.raises(InputError, match=re.escape(message)):
        package.train(LSTM, settings, **options)
    assert message not in "".join(capfd.readouterr())
    assert list(here.glob("*/*")) == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """The function that runs a command is replaced, so that no command runs."""
    run = mock.Mock()
    monkeypatch.setattr("harness.api.run_printed", run)
    return run


@pytest.mark.usefixtures("here", "run")
def test_tasks_of_srun_name_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On several nodes, the processes would return different runs, of which only one exists."""
    for name in ("JOB_ID", "STEP_ID", "STEP_NUM_TASKS"):
        monkeypatch.setenv(f"SLURM_{name}", "2")
    with pytest.raises(InputError, match="run_id = None: all 2 tasks of srun should name one run"):
        package.train(LSTM)
    assert package.train(LSTM, run_id="a").folder.name == "a"


@pytest.mark.usefixtures("here")
def test_nested_settings_keep_other_options(run: mock.Mock) -> None:
    """A table of options changes only its options; a table of class weights is one value."""
    train: dict[str, object] = {"optimizer_options": {"rho": 0.8}, "class_weights": {"neg": 2}}
    package.train(LSTM, {"train": train})
    chosen = [word for word in run.call_args.args if word.startswith("--set=")]
    assert chosen == [
        "--set=train.optimizer_options.rho=0.8",
        "--set=train.class_weights={ neg = 2 }",
    ]


def test_code_of_others_is_trusted_for_one_call(here: Path, run: mock.Mock) -> None:
    """`trust_code` also reaches the check in this process, and applies to one call only."""
    (here / "mynet.py").write_text("def net(inputs): return inputs\n")
    (here / "mynet.py").chmod(0o666)
    (here / "job.toml").write_text('[model]\narchitecture = "mynet.py:net"\n')
    package.train("job.toml", trust_code=True)
    assert "--trust-code" in run.call_args.args
    with pytest.raises(InputError, match="others can write to it"):
        package.train("job.toml")


def test_an_unfinished_run_has_no_result(here: Path) -> None:
    """The run's history can be read; its result, model and predictions are refused."""
    folder = here / "runs/lstm/begun"
    write_run(folder, toml=LSTM.read_text())
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 0.5}\n')
    (run,) = package.load_runs("runs")
    assert (run.finished, run.history) == (False, [{"epoch": 1, "loss": 0.5}])
    for read in (lambda: run.result, run.model, lambda: run.predict(["good"])):
        with pytest.raises(InputError, match="harness resume"):
            read()
    for texts, message in (
        ([], "texts = []: should be a string, or a list of at least one string"),
        (["good", 3], "text 2 = 3: should be a string"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            run.predict(texts)  # type: ignore[arg-type]


def test_runs_are_a_list_and_a_frame(here: Path) -> None:
    """The frame has a row per run, with the keys of its job and its scores."""
    for seed in (1, 2, 3):
        write_run(here / f"runs/lstm/{seed}", LSTM.read_text(), seed=seed, accuracy=seed / 10)
    (here / "runs/lstm/begins").mkdir()  # a starting run has a lease before it has a job
    (here / "runs/lstm/begins/lease.json").write_text("{}")
    runs = package.load_runs()
    assert (len(runs), len(runs[1:]), runs[0].folder.name) == (3, 2, "1")
    frame = runs.to_frame()
    assert list(frame["seed"]) == [1, 2, 3]
    assert list(frame["accuracy"]) == [0.1, 0.2, 0.3]
    assert set(frame["model.units"]) == {32}
    with pytest.raises(InputError, match="nowhere: is not a folder"):
        package.load_runs("nowhere")


def test_an_unreadable_run_does_not_hide_others(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The row of an unreadable run has the readable values. Code of others is read, but not run."""
    code = '[model]\narchitecture = "net.py:net"\n[code]\n"net.py" = "def net(): ..."\n'
    lstm = LSTM.read_text()
    jobs = {"broken": "[", "gone": "", "good": lstm, "lost": lstm, "others": code}
    for name, toml in jobs.items():
        write_run(here / f"runs/lstm/{name}", toml)
    (here / "runs/lstm/others/job.toml").chmod(0o666)
    (here / "runs/lstm/lost/result.json").write_text("{")
    runs = package.load_runs()
    shutil.rmtree(here / "runs/lstm/gone")
    rows = {Path(row["folder"]).name: row for row in runs.to_frame().to_dict("records")}
    for key, value, names in (
        ("finished", True, ["broken", "good", "lost", "others"]),
        ("model.units", 32, ["good", "lost", "others"]),
        ("accuracy", 0.87, ["good", "others"]),
    ):
        assert [name for name, row in rows.items() if row[key] == value] == names
    assert len(caplog.messages) == 3


def test_a_comparison(here: Path, harness: Harness) -> None:
    """The text equals the command's output, the frame has the means; `write` makes a report.

    `where` and `pairs` select runs and pairs of jobs as the command's options do.
    """
    for job, accuracy in (("lstm", 0.8), ("gru", 0.9)):
        for seed in (1, 2):
            write_run(here / f"runs/{job}/{seed}", job=job, seed=seed, accuracy=accuracy)
    found = package.compare("runs", baseline="none")
    means = found.to_frame().set_index("job")["accuracy"].to_dict()
    assert means == pytest.approx({"lstm": 0.8, "gru": 0.9})
    assert harness.run_here("compare", "runs", "--baseline", "none").stdout == f"{found}\n"
    assert found.write("report").is_file()
    dataset = small_data(here / "data")
    write_scored_run(here / "other/lstm/3", dataset, [False] * 60, seed=3)
    one = package.compare(*package.load_runs("other"), baseline="none", data="data")
    wrong: Any = "ngram"
    with pytest.raises(InputError, match="baseline = 'ngram': should be 'ngrams', 'none' or None"):
        package.compare("runs", baseline=wrong)
    assert [run.folder.name for run in one.parts[0].group.all_runs] == ["3"]
    assert "Confusion matrix of lstm" in one.write("report").read_text()
    for n in range(14):
        for seed in (1, 2):
            toml = f"[model]\narchitecture = 'lstm'\nunits = {8 if n else 9}\n"
            write_run(here / f"many/job{n}/{seed}", toml, job=f"job{n}", seed=seed)
    found = package.compare("many", baseline="none", where="model.units=8", pairs=True)
    assert len(found.parts[0].differences) == 13 * 12 / 2
    words = ("compare", "many", "--baseline", "none", "--where", "model.units=8", "--pairs")
    assert harness.run_here(*words).stdout == f"{found}\n"


def test_a_leaderboard_has_numbers(here: Path) -> None:
    """Numbers have numeric types, and missing values are None."""
    values = {"model.pooling": "max", "model.units": 16, "train.learning_rate": 0.001}
    trials = trial(0, 0.81, values=values), trial(1, None, values=values, error="it broke")
    sweep = package.Sweep(make_sweep(here / "s", RANDOM, *trials).folder)
    first, second = sweep.leaderboard
    known = {"rank": 1, "trial": 0, "status": "finished", "val_accuracy": 0.81, **values}
    assert first.items() >= known.items()
    assert [type(first[key]) for key in ("rank", "model.units", "epochs")] == [int] * 3
    assert (second["val_accuracy"], second["training_s"]) == (None, None)
    assert (second["status"], second["error"]) == ("failed", "it broke")
    assert list(sweep.to_frame()["trial"]) == [0, 1]
    assert package.Sweep(make_sweep(here / "t", RANDOM).folder).leaderboard == []


def stand_in(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Let `run_printed` run these lines of Python instead of a command."""
    code = f"import signal, sys, time\nprint('2026-01-01 00:00:00 INFO begins', flush=True)\n{body}"
    monkeypatch.setattr(pool, "child_args", lambda *_: [sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("print('2026-01-01 00:00:00 ERROR no such thing'); sys.exit(2)", ["begins"]),
        ("print('harness: a\\nharness: no such thing'); sys.exit(2)", ["begins", "a"]),
        ("print('harness: not the end\\nend')", ["begins", "not the end", "end"]),
    ],
)
def test_the_last_error_is_raised_and_other_lines_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: str, shown: list[str]
) -> None:
    """The error that ends the command is raised and not printed."""
    stand_in(monkeypatch, body)
    fails = pytest.raises(InputError, match=r"^no such thing$")
    with fails if "exit(2)" in body else nullcontext():
        pool.run_printed("train")
    assert capsys.readouterr().out.splitlines() == shown


def test_a_command_continues_if_its_output_cannot_be_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The pipe's reader has ended, as in `| head`; the command still runs to its end."""
    stand_in(monkeypatch, f"open({str(tmp_path / 'ended')!r}, 'w')")
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(os.dup(writer), "w")
    monkeypatch.setattr(sys, "stdout", stream)
    pool.run_printed("train")
    assert (tmp_path / "ended").exists()
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # closing it writes the rest


def test_a_failed_audit_is_not_replaced_by_another_call(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit fails while another audit of the same run succeeds: its own error is raised."""
    write_run(here / "runs/lstm/a", LSTM.read_text())
    digest = hashlib.sha256((here / "runs/lstm/a/result.json").read_bytes()).hexdigest()
    other = {"depth": "quick", "outcome": EQUAL, "ended_s": time.time() + 60}

    def run_printed(*_: str) -> None:
        keep_audit(here / "runs", digest, other)
        raise RunError("harness audit: was ended by signal 9")

    monkeypatch.setattr("harness.api.run_printed", run_printed)
    with pytest.raises(RunError, match="signal 9"):
        package.audit(here / "runs/lstm/a", full=True)


@pytest.mark.full
def test_threads_predict_at_once_and_print_nothing(finished: tuple[Harness, Path]) -> None:
    """Only one of several threads imports TensorFlow, without oneDNN; standard error is as before.

    The user's choice of another backend for Keras does not matter.
    """
    harness, folder = finished
    code = (
        "import harness, os\nfrom concurrent.futures import ThreadPoolExecutor\n"
        f"(run,) = harness.load_runs({str(folder)!r})\nbefore = os.fstat(2)\n"
        "with ThreadPoolExecutor() as pool:\n"
        "    found = [*pool.map(run.predict, [['A great film.']] * 4)]\n"
        "print(len(found[0]), found == [found[0]] * 4, run.model().count_params() > 0)\n"
        "print(os.path.samestat(before, os.fstat(2)), os.environ['TF_ENABLE_ONEDNN_OPTS'])\n"
    )
    hidden = ("TF_", "CUDA_VISIBLE")
    environment = {k: v for k, v in harness.environment.items() if not k.startswith(hidden)}
    environment["KERAS_BACKEND"] = "jax"
    asked = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (asked.stdout, asked.stderr) == ("1 True True\nTrue 0\n", "")


def test_a_keyboard_interrupt_lets_the_command_save(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command gets the signal and ends; then KeyboardInterrupt is raised."""
    save = "lambda *_: (print('saved', flush=True), sys.exit(75))"
    stand_in(monkeypatch, f"signal.signal(signal.SIGINT, {save})\ntime.sleep(60)")
    threading.Timer(1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        pool.run_printed("train")
    assert capsys.readouterr().out.splitlines()[-1] == "saved"


@pytest.mark.full
def test_the_examples_of_the_readme(here: Path) -> None:
    """The examples run in a thread and change no signal handler."""
    section = README.read_text().split("\n## From Python\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (here / "jobs").symlink_to(JOBS)
    handlers = [signal.getsignal(number) for number in range(1, 32)]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(exec, "".join(blocks), {}).result()
    assert [signal.getsignal(number) for number in range(1, 32)] == handlers
    (run,) = package.load_runs("runs")
    assert run.finished


def test_a_cancelled_search_raises_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with exit code 0, but the search has no result."""
    folder = make_sweep(here / "runs/tune_lstm/s", RANDOM).folder
    stand_in(monkeypatch, "")
    with pytest.raises(Interrupted, match=f"continue with: harness resume {folder}"):
        package.tune(folder / "search.toml", sweep_id="s", runs=here / "runs")
