"""Every command that reads a run's folder, with each file of it broken in every way.

Nothing ends with a traceback, nothing waits for ever, and no bad run brings down a command about
all runs. The commands run in this process: hundreds of processes would take too long.
"""

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from harness.cli.main import app
from tests.conftest import JOBS, Harness, run_here


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def noise(path: Path) -> None:
    path.write_bytes(b"".join(hashlib.sha512(bytes([i])).digest() for i in range(50)))


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to(target: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return replace


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 200_000)


def deep_object(path: Path) -> None:
    path.write_bytes(b'{"a":' * 200_000)


def wrong_values(path: Path) -> None:
    path.write_text(
        '{"format": [], "starts": 5, "dataset": "x", "epoch": "one", "val_accuracy": {}, "plan": '
        '[], "accuracy": null, "devices_asked": 7, "classes": 3, "seed": "\\u001b[31m"}\n'
    )


def empty(path: Path) -> None:
    path.write_bytes(b"")


WAYS: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "truncated": truncated,
    "empty": empty,
    "noise": noise,
    "deep list": deep,
    "deep object": deep_object,
    "wrong values": wrong_values,
    "huge": huge,
    "fifo": fifo,
    "endless device": link_to("/dev/zero"),
    "link to itself": link_to("itself"),
    "folder": folder,
}
FILES = (
    *("job.toml", "provenance.json", "result.json", "state.json", "lease.json"),
    *("metrics.jsonl", "timings.jsonl", "vocabulary.txt", "predictions.npz", "model.keras"),
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status", "--runs", "RUNS"),
    "logs": ("logs", "RUN", "--runs", "RUNS"),
    "cancel": ("cancel", "RUN", "--runs", "RUNS"),
    "compare": ("compare", "RUNS", "--no-baseline"),
    "resume": ("resume", "RUN"),
    "reproduce": ("reproduce", "RUN", "--to", "NEW"),
    "prune": ("prune", "--runs", "RUNS"),
}
MODEL_COMMANDS: dict[str, tuple[str, ...]] = {
    "predict": ("predict", "RUN", "a fine film"),
    "evaluate": ("evaluate", "RUN"),
}
READ_BY = {  # the others are read by every command that looks at a run
    "resume": tuple(file for file in FILES if file != "result.json"),  # it would train again
    "reproduce": ("job.toml", "provenance.json"),
    "predict": ("job.toml", "result.json", "vocabulary.txt", "model.keras"),
    "evaluate": ("result.json", "model.keras"),
}
FOR_ALL = ("status",)  # which a bad run must not end


@pytest.fixture
def copies(
    finished: tuple[Harness, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The folders of runs, with a good one and one to break."""
    monkeypatch.setenv("HARNESS_HERE", "1")  # no word about jobs where there is a Slurm
    runs = tmp_path / "runs"
    shutil.copytree(finished[1], runs / "bilstm" / "good")
    bad = shutil.copytree(finished[1], runs / "bilstm" / "bad")
    (bad / "lease.json").write_text('{"token": "of one killed at the end"}')
    return runs, bad


def ended(words: list[str]) -> tuple[int, str, str]:
    """A command's exit code, output and errors; any exception of its is the test's failure."""
    done = run_here(*words)
    return done.returncode, done.stdout, done.stderr


def tried(
    command: tuple[str, ...], copies: tuple[Path, Path], file: str, way: str
) -> tuple[int, str, str]:
    runs, run = copies
    whole = (run / file).read_bytes()
    WAYS[way](run / file)
    new = runs.parent / "new"
    named = {"RUNS": str(runs), "RUN": str(run), "NEW": str(new)}
    try:
        return ended([named.get(word, word) for word in command])
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if (run / file).is_dir():
            shutil.rmtree(run / file)
        (run / file).unlink(missing_ok=True)
        (run / file).write_bytes(whole)


def check(name: str, told: tuple[int, str, str], which: str) -> None:
    code, out, err = told
    assert "Traceback" not in out + err, which
    assert "\x1b" not in out + err, which
    assert code in (0, 1, 2), (which, code, err)
    if name in FOR_ALL:
        assert code == 0, (which, err)
        assert "good" in out, which
    elif code:
        lines = [line for line in err.splitlines() if "WARNING" not in line]
        assert len(lines) == 1, (which, err)


@pytest.mark.full
@pytest.mark.parametrize("name", COMMANDS)
def test_no_file_of_a_run_brings_down_more_than_itself(
    copies: tuple[Path, Path], name: str
) -> None:
    """One line at most, the exit codes of refusals, and all other runs are still shown."""
    for file in READ_BY.get(name, FILES):
        for way in WAYS:
            check(name, tried(COMMANDS[name], copies, file, way), f"{name}: {file} {way}")


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name in MODEL_COMMANDS for file in READ_BY[name]]
)
def test_a_model_is_refused_with_any_of_its_files_broken(
    copies: tuple[Path, Path], name: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction is either that of the whole run, or none."""
    # TensorFlow's threads may be set once in a process, and other tests have set them.
    monkeypatch.setattr("harness.training.launch.computing", lambda job: nullcontext())
    whole = ended([{"RUN": str(copies[1])}.get(word, word) for word in MODEL_COMMANDS[name]])
    assert whole[0] == 0, whole
    for way in WAYS:
        told = tried(MODEL_COMMANDS[name], copies, file, way)
        check(name, told, f"{name}: {file} {way}")
        assert told[0] in (1, 2) or told[1] == whole[1], (way, told)


# Options


def number_options() -> Iterator[tuple[list[str], str]]:
    """Each command with each of its options that take a number."""

    def of(command: Any, words: list[str]) -> Iterator[tuple[list[str], str]]:
        for name, sub in getattr(command, "commands", {}).items():
            yield from of(sub, [*words, name])
        for parameter in command.params:
            kind = str(parameter.type_descriptor.annotation)
            if parameter.opts[0].startswith("--") and ("int" in kind or "float" in kind):
                yield words, parameter.opts[0]

    yield from of(typer.main.get_command(app), [])


BAD_NUMBERS = ("x", "", "1e999", "-5", "nan", "0x10", "99999999999999999999999", "1,5", "\x1b[31m")


@pytest.mark.full
def test_a_number_that_is_none_is_refused_for_each_option(copies: tuple[Path, Path]) -> None:
    """Before the command begins: it is not reached with such a value."""
    arguments = {"train": [str(JOBS / "lstm.toml")], "submit": [str(JOBS / "lstm.toml")]}
    count = 0
    for words, option in number_options():
        for value in BAD_NUMBERS:
            told = ended([*words, option, value, *arguments.get(words[0], [])])
            assert told[0] == 2, (words, option, value, told)
            check("option", told, f"{words} {option} {value!r}")
            count += 1
    assert count > 100


@pytest.mark.full
@pytest.mark.parametrize("option", ["--data", "--file", "job", "data.source"])
def test_a_file_that_is_none_is_refused_for_each_option(
    copies: tuple[Path, Path], option: str
) -> None:
    """Data, texts and jobs of any kind of file."""
    runs, run = copies
    file = runs.parent / "given"
    job, to = str(JOBS / "lstm.toml"), ("--runs", str(runs.parent / "other"))
    commands: dict[str, list[list[str]]] = {
        "--data": [["train", job, *to, "--data"], ["evaluate", str(run), "--data"]],
        "--file": [["predict", str(run), "--file"]],
        "job": [["train", *to], ["tune", *to], ["submit", *to]],
        "data.source": [["train", job, *to, "--set"]],
    }
    # Such are texts, and long ones are cut.
    texts = {"truncated", "wrong values", "deep list", "deep object"}
    fine = texts if option == "--file" else set()
    for way in WAYS.keys() - fine:
        for words in commands[option]:
            file.write_bytes(b"abc")
            WAYS[way](file)
            value = f"data.source={file}" if option == "data.source" else str(file)
            told = ended([*words, value])
            check(option, told, f"{words} {way}")
            assert told[0] in (1, 2), (words, way, told)
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    assert not (runs.parent / "other").exists()


@pytest.mark.full
def test_a_model_that_names_a_function_is_refused(
    copies: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config.json` of a stranger's model may name anything, such as `os.system`."""
    monkeypatch.setattr("harness.training.launch.computing", lambda job: nullcontext())
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
    told = ended(["predict", str(run), "a fine film"])
    check("predict", told, "os.system")
    assert told[0] == 2, told
    assert not touched.exists()


def test_an_array_that_asks_for_terabytes_is_refused(copies: tuple[Path, Path]) -> None:
    """The header of an array in `predictions.npz` may name any size."""
    _, run = copies
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
    )
    with zipfile.ZipFile(run / "predictions.npz", "w") as archive:
        for name in ("labels.npy", "probabilities.npy"):
            archive.writestr(name, header.getvalue())
    told = ended(["compare", str(run.parent), "--no-baseline", "--out", str(run.parent / "out")])
    check("compare", told, "terabytes")
    assert told[0] in (0, 1, 2), told
