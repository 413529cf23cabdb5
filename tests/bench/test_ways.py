"""What is held against each other: the same architecture, on the same devices."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.bench import bench, processes
from harness.bench.measured import Measured, read_record
from harness.bench.processes import Bench, Settings
from harness.checks import child
from harness.checks.child import Ended
from harness.checks.probe import ARCHITECTURES
from harness.system.console import Console
from harness.tracking.run_dir import RunDirectory
from tests.conftest import PROJECT

SETTINGS = Settings(ARCHITECTURES, pairs=1, reviews=200, epochs=2, data=None, jobs=())
ENDED = Ended(0, 1.0, 1.0, 1.0, "", "")


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose processes take a second and answer at once."""

    class Popen:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> "Popen":
            return self

        __exit__ = poll = send_signal = lambda *_: None

    made_up = Bench(SETTINGS, tmp_path, Console())
    monkeypatch.setattr(made_up, "keras_file", lambda: tmp_path / "imdb.npz")
    monkeypatch.setattr(made_up, "harness", lambda *_, **__: ENDED)
    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(RunDirectory, "read_json", lambda *_: {"first_step_s": 1.0})
    monkeypatch.setattr(RunDirectory, "result", lambda _: {"first_step_s": 1.0})
    monkeypatch.setattr(child, "ask", lambda *_, **__: ({}, ENDED))
    return made_up


def names_of(made_up: Bench, *architectures: str) -> set[str]:
    """Of what is measured of them by starts, and by runs side by side."""
    made_up.settings = replace(made_up.settings, architectures=architectures)
    found: list[Measured] = [*bench.resuming(made_up), *bench.side_by_side(made_up)]
    return {each.name for each in found}


def test_other_architectures_have_other_names(made_up: Bench) -> None:
    """The names of all five are those of the reference."""
    known = {each.name for each in read_record(PROJECT / "tests" / "bench.json")[1]}
    assert names_of(made_up, *ARCHITECTURES) <= known
    assert names_of(made_up, "gru").isdisjoint(known | names_of(made_up, "bilstm"))
    pairs = names_of(made_up, "rnn", "lstm"), names_of(made_up, "rnn", "gru")
    assert pairs[0] & pairs[1] == {"start to first step"}


@pytest.mark.parametrize(
    ("named", "gpus", "args", "hidden"),
    [
        (None, 4, ["--devices", "gpu:1"], False),
        ("gpu:4", 4, ["--devices", "gpu:1"], False),
        (None, 1, [], False),
        ("cpu", 4, [], True),
        ("cpu:2", 0, [], True),
    ],
)
def test_both_ways_use_the_same_devices(
    made_up: Bench,
    monkeypatch: pytest.MonkeyPatch,
    named: str | None,
    gpus: int,
    args: list[str],
    hidden: bool,
) -> None:
    """One GPU of several, as the notebook does; no GPU where the site's runs use the CPU."""
    monkeypatch.delenv("HARNESS_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("HARNESS_DEVICES", named)
    monkeypatch.setattr(processes, "visible_gpus", lambda: gpus)
    asked: list[dict[str, Any]] = []
    trained: list[tuple[object, ...]] = []
    quantities = ("first step", "training", "evaluation", "peak memory", "checkpoints")

    def ask(*_: object, **variables: str) -> tuple[dict[str, float], Ended]:
        asked.append(variables)
        names = ("first_step_s", "training_reviews_per_s", "evaluation_reviews_per_s")
        return dict.fromkeys(names, 1.0), ENDED

    def train(_: Bench, __: Path, *more: str, **___: str) -> dict[str, float]:
        trained.append(more)
        return dict.fromkeys(quantities, 1.0)

    monkeypatch.setattr(child, "ask", ask)
    monkeypatch.setattr(bench, "_train", train)
    made_up.settings = replace(made_up.settings, architectures=("rnn",))
    assert [*bench.training(made_up)]
    faster = (*args, "--set", "train.compile_evaluation=true", "--set", "train.block_lstm=true")
    by_length = (*faster, "--set", "data.bucket=true")
    assert sorted(map(tuple, trained)) == sorted([tuple(args)] * 2 + [faster, by_length])
    assert {each.get("CUDA_VISIBLE_DEVICES") for each in asked} == {"" if hidden else None}
