"""On a run with a broken file, no command prints a traceback or hangs; other runs are shown.

The commands run in the process of the tests, because hundreds of processes would take too long.
"""

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from tests.conftest import JOBS, Harness, run_here

NOISE = b"".join(hashlib.sha512(bytes([i])).digest() for i in range(50))
WRONG_VALUES = (
    '{"format": [], "starts": 5, "dataset": "x", "epoch": "one", "val_accuracy": {}, "plan": [], '
    '"accuracy": null, "devices_asked": 7, "classes": 3, "seed": "\\u001b[31m"}\n'
)


def huge(path: Path, _: bytes) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # a sparse file


# Each function writes a broken file; `whole` is the content of the intact file.
WAYS: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, whole: None,
    "truncated": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "noise": lambda path, whole: path.write_bytes(NOISE),
    "deep": lambda path, whole: path.write_bytes(b"[" * 200_000),
    "wrong values": lambda path, whole: path.write_text(WRONG_VALUES),
    "huge": huge,
    "fifo": lambda path, whole: os.mkfifo(path),
    "link to itself": lambda path, whole: path.symlink_to(path.name),
    "folder": lambda path, whole: path.mkdir(),
}
# The files of an entry are broken together.
FILES = (
    *("job.toml", "provenance.json", "result.json", "state.json"),
    "lease.json metrics.jsonl timings.jsonl vocabulary.txt predictions.npz model.keras",
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status", "--runs", "RUNS"),
    "logs": ("logs", "RUN", "--runs", "RUNS"),
    "cancel": ("cancel", "RUN", "--runs", "RUNS"),
    "compare": ("compare", "RUNS", "--baseline=none"),
    "resume": ("resume", "RUN"),
    "reproduce": ("reproduce", "RUN", "--to", "NEW"),
    "prune": ("prune", "--runs", "RUNS"),
    "predict": ("predict", "RUN", "a fine film"),
    "evaluate": ("evaluate", "RUN"),
}
# The files that are broken for a command; for commands that are not listed, all FILES. result.json
# is not broken for `resume`, which would then train.
READ_BY = {
    "resume": tuple(file for file in FILES if file != "result.json"),
    "reproduce": ("job.toml", "provenance.json"),
    "predict": ("job.toml", "result.json", "vocabulary.txt", "model.keras"),
    "evaluate": ("result.json", "model.keras"),
}


@pytest.fixture
def copies(
    finished: tuple[Harness, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The folder of the runs, which contains a good run, and the run to break."""
    monkeypatch.setenv("HARNESS_HERE", "1")  # no warning if this machine has Slurm
    # A process can set TensorFlow's number of threads only once, and other tests have set it.
    monkeypatch.setattr("harness.training.launch.computing", lambda *_: nullcontext())
    runs = tmp_path / "runs"
    shutil.copytree(finished[1], runs / "bilstm" / "good")
    bad = shutil.copytree(finished[1], runs / "bilstm" / "bad")
    (bad / "lease.json").write_text('{"token": "of a killed process"}')
    return runs, bad


def run_on(copies: tuple[Path, Path], words: tuple[str, ...]) -> "CompletedProcess[str]":
    """Run a command; RUNS stands for the folder of the runs, RUN for the run to break."""
    runs, run = copies
    named = {"RUNS": str(runs), "RUN": str(run), "NEW": str(runs.parent / "new")}
    return run_here(*(named.get(word, word) for word in words))


def run_on_broken(
    copies: tuple[Path, Path], words: tuple[str, ...], files: str, way: str
) -> "CompletedProcess[str]":
    """Break files, run a command, and restore the files."""
    contents = {path: path.read_bytes() for path in map(copies[1].joinpath, files.split())}
    for path, whole in contents.items():
        path.unlink()
        WAYS[way](path, whole)
    try:
        return run_on(copies, words)
    finally:
        shutil.rmtree(copies[0].parent / "new", ignore_errors=True)
        for path, whole in contents.items():
            remove(path)
            path.write_bytes(whole)


def remove(path: Path) -> None:
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)


def check(name: str, done: "CompletedProcess[str]", which: str) -> None:
    """Assert success or an error in one line; `status` must succeed and show the good run."""
    shown = done.stdout + done.stderr
    assert not [bad for bad in ("Traceback", "\x1b") if bad in shown], which
    assert done.returncode in (0, 1, 2), (which, done)
    if name == "status":
        assert (done.returncode, "good" in done.stdout) == (0, True), (which, done)
    elif done.returncode:
        lines = [line for line in done.stderr.splitlines() if "WARNING" not in line]
        assert len(lines) == 1, (which, lines)


@pytest.mark.full
@pytest.mark.parametrize("name", COMMANDS)
def test_a_broken_file_is_one_line_at_most(copies: tuple[Path, Path], name: str) -> None:
    """The exit code is 0, 1 or 2, and `status` still shows the good run.

    `predict` and `evaluate` either refuse the broken file or do not need it.
    """
    whole = run_on(copies, COMMANDS[name]) if name in ("predict", "evaluate") else None
    assert whole is None or whole.returncode == 0, whole
    for file in READ_BY.get(name, FILES):
        for way in WAYS:
            done = run_on_broken(copies, COMMANDS[name], file, way)
            check(name, done, f"{name}: {file} {way}")
            assert not whole or done.returncode or done.stdout == whole.stdout, (way, done)


@pytest.mark.full
@pytest.mark.parametrize("option", ["--data", "--file", "job", "data.source"])
def test_every_option_refuses_a_bad_file(copies: tuple[Path, Path], option: str) -> None:
    """Options for data, texts and jobs refuse every kind of bad file."""
    runs, run = copies
    file = runs.parent / "bad"
    job, to = str(JOBS / "lstm.toml"), ("--runs", str(runs.parent / "other"))
    commands: dict[str, list[list[str]]] = {
        "--data": [["train", job, *to, "--data"], ["evaluate", str(run), "--data"]],
        "--file": [["predict", str(run), "--file"]],
        "job": [["train", *to], ["tune", *to], ["submit", *to]],
        "data.source": [["train", job, *to, "--set"]],
    }
    # Some files are valid texts, and a command may wait for the texts of a FIFO.
    fine = {"truncated", "wrong values", "deep", "fifo"} if option == "--file" else set()
    for way in WAYS.keys() - fine:
        for words in commands[option]:
            WAYS[way](file, b"abc")
            value = f"data.source={file}" if option == "data.source" else str(file)
            done = run_here(*words, value)
            check(option, done, f"{words} {way}")
            assert done.returncode in (1, 2), (words, way, done)
            remove(file)
    assert not (runs.parent / "other").exists()


@pytest.mark.full
def test_a_model_file_calls_no_function(copies: tuple[Path, Path]) -> None:
    """`config.json` in the file may name `os.system`, but the network is built from the job."""
    _, run = copies
    touched = run / "touched"
    config: dict[str, object] = {"module": "os", "class_name": "system"}
    config |= {"registered_name": "system", "config": {"command": f"touch {touched}"}}
    with zipfile.ZipFile(run / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(run / "model.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    check("predict", run_on(copies, COMMANDS["predict"]), "os.system")
    assert not touched.exists()


def test_an_array_of_terabytes_is_not_allocated(copies: tuple[Path, Path]) -> None:
    """The header of an array in `predictions.npz` may claim any size."""
    _, run = copies
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
    )
    with zipfile.ZipFile(run / "predictions.npz", "w") as archive:
        for name in ("labels.npy", "probabilities.npy"):
            archive.writestr(name, header.getvalue())
    check("compare", run_on(copies, (*COMMANDS["compare"], "--out", "NEW")), "terabytes")
