"""`train --from RUN`: the same job continues to the same bytes, another job begins with weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from harness.errors import InputError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.tracking.run_dir import RunDirectory, stamped
from harness.training.context import RunContext
from harness.training.parent import Parent, begin_with, find_parent
from tests.conftest import JOBS, Harness, calm_run, results
from tests.made_up_runs import write_run
from tests.training.kills import trained_with_kills, wait_for_step


def embedding(run: Path) -> np.ndarray:
    """Return the embedding of a finished run's model."""
    weights: list[np.ndarray] = keras.saving.load_model(run / "model.keras").get_weights()
    return weights[0]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """A folder with the finished run `lstm/calm` of three epochs."""
    harness = Harness(tmp_path_factory.mktemp("parent"))
    calm_run(harness, "lstm")
    return harness


@pytest.mark.full
def test_more_epochs_end_with_the_bytes_of_one_run(parent: Harness) -> None:
    """The child run is killed once, and the same command resumes it."""
    five = ("--set", "train.epochs=5")
    named = parent.runs / "lstm/calm"
    whole = parent.trained("lstm", "whole", *five)
    child = trained_with_kills(parent, "lstm", [50], *five, "--from", named)
    assert results(child) == results(whole)
    first = json.loads((child / "provenance.json").read_text())["starts"][0]
    assert first["parent"] == {"run": str(named), "begins_with": "checkpoint"}


@pytest.mark.full
def test_a_run_that_continues_uses_plan_and_devices_of_its_parent(parent: Harness) -> None:
    """The run warns of other differences from its parent, and --strict refuses them."""
    shutil.copytree(parent.runs / "lstm/calm", named := parent.runs / "lstm/two")
    record = json.loads((named / "provenance.json").read_text())
    plan = {**record["plan"], "way": "keras", "threads": 3}
    record |= {"plan": plan, "devices_asked": "cpu:2"}
    record["starts"][0]["packages"]["numpy"] = "1.0"
    record["starts"][0]["devices"] *= 2
    (named / "provenance.json").write_text(json.dumps(record))
    words = ("--set", "train.epochs=4", "--from", named)
    line = parent.refuse(*parent.train_words("lstm", "calm", "--from", named))
    assert "calm exists already, and began with no parent; leave --from out" in line
    refused = parent.train("lstm", "refused", *words, "--strict")
    assert refused.returncode == 2, refused.stderr
    line = refused.stderr.splitlines()[-1]
    assert f"--strict: run {named}: " in line
    assert "numpy was 1.0 and is" in line
    assert "it ran on" not in line
    assert not (parent.runs / "lstm/refused").exists()
    done = parent.succeed(*parent.train_words("lstm", "more", *words))
    assert "numpy was 1.0 and is" in done.stderr
    child = json.loads((parent.runs / "lstm/more/provenance.json").read_text())
    assert child["devices_asked"] == "cpu:2"
    assert {key: child["plan"][key] for key in ("way", "threads", "parts")} == {
        key: plan[key] for key in ("way", "threads", "parts")
    }


@pytest.mark.full
def test_another_job_begins_with_the_weights_that_fit(parent: Harness) -> None:
    """The run names the layers that don't fit; a kill before its first step changes nothing."""
    other = ("--set", "model.units=16", "--set", "train.epochs=1")
    named = parent.runs / "lstm/calm"
    done = parent.succeed(*parent.train_words("lstm", "other", *other, "--from", named))
    assert f"begins with the weights of run {named}, because these settings" in done.stdout
    assert "differ: model.units" in done.stdout
    assert "LSTM 1: starts from random weights of shape [(32, 64), (16, 64)" in done.stderr
    assert "Embedding" not in done.stderr
    process = parent.start(*parent.train_words("lstm", "again", *other, "--from", named))
    again = parent.runs / "lstm/again"
    wait_for_step(process, again, 0)
    process.kill()
    process.communicate()
    with np.load(again / "checkpoints/step-000000000.npz") as begun:
        assert np.array_equal(begun["model/0"], embedding(named))
    shutil.rmtree(again / "checkpoints")  # as if killed earlier; the record still names the parent
    assert parent.run("resume", again).returncode == 0
    assert results(again) == results(parent.runs / "lstm/other")


ANCHOR = """
import keras
class Anchor(keras.optimizers.SGD):
    def build(self, variables):
        super().build(variables)
        self.first = [self.add_variable_from_reference(each, "first") for each in variables]
        for first, each in zip(self.first, variables):
            first.assign(each)
    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, self.first[self._get_variable_index(variable)])
def anchor(learning_rate, options):
    return Anchor(learning_rate)
"""


@pytest.mark.full
def test_an_optimizer_that_copies_the_weights_copies_those_of_the_parent(
    parent: Harness, tmp_path: Path
) -> None:
    """A custom optimizer that resets all weights to its copies ends with the parent's weights."""
    (tmp_path / "anchor.py").write_text(ANCHOR)
    named, epochs = parent.runs / "lstm/calm", ("--set", "train.epochs=1")
    words = (*epochs, "--set", f"train.optimizer={tmp_path}/anchor.py:anchor", "--trust-code")
    child = parent.trained("lstm", "anchored", *words, "--from", named)
    np.testing.assert_allclose(embedding(child), embedding(named), rtol=1e-5)


@pytest.mark.full
def test_a_parent_without_a_fitting_layer_is_refused(parent: Harness) -> None:
    """One line says how to train without a parent."""
    words = ("--set", "model.units=16", "--set", "model.embedding_dim=5", "--set", "train.epochs=1")
    refused = parent.train("lstm", "alone", *words, "--from", parent.runs / "lstm/calm")
    assert refused.returncode == 2, refused.stderr
    assert "no layer of this run's model fits the new job; train a new run" in refused.stderr


def test_a_bad_parent_is_refused(harness: Harness) -> None:
    """One line names the folder and the remedy; nothing is written."""
    begun = harness.runs / "lstm/begun"
    write_run(begun, (JOBS / "lstm.toml").read_text())
    (begun / "result.json").unlink()
    cases = {
        ("nowhere",): "run nowhere: no such folder",
        (begun,): "is unfinished and has no model yet; wait until the run ends, or continue",
        (begun, "--seeds", "1-2"): "is for a single run; give one JOB without --seeds",
    }
    for words, message in cases.items():
        assert message in harness.refuse(*harness.train_words("lstm", "child", "--from", *words))
    assert not (harness.runs / "lstm/child").exists()


# Pure functions


LSTM = load_job(JOBS / "lstm.toml")
DATA: Any = SimpleNamespace(checksum="data")


def write_parent(folder: Path, job: Job) -> RunDirectory:
    """Write a finished run of three epochs with an empty checkpoint."""
    parent = folder / "runs/lstm/parent"
    write_run(parent, job.to_toml())
    record = stamped({"dataset": {"checksum": DATA.checksum}})
    (parent / "provenance.json").write_text(json.dumps(record))
    (parent / "metrics.jsonl").write_text('{"epoch": 1}\n' * 3)
    (parent / "model.keras").touch()
    (parent / "checkpoints").mkdir()
    (parent / "checkpoints/step-000000003.npz").touch()
    return RunDirectory(parent)


def parent_of(parent: RunDirectory, job: Job) -> tuple[Parent, RunContext]:
    """Return the parent that `find_parent` finds for a new run, and the new run's context."""
    context = RunContext(RunDirectory(parent.folder.with_name("child")), job, DATA)
    found = find_parent(context, named=parent.folder)
    assert found
    return found, context


def test_a_bilstm_begins_only_with_a_parent_that_pads_alike(tmp_path: Path) -> None:
    """With `data.bucket`, two LSTM layers replace the layer Bidirectional."""
    parent = write_parent(tmp_path, load_job(JOBS / "bilstm.toml"))
    with pytest.raises(InputError, match=r"set data\.bucket = false as in that run"):
        parent_of(parent, load_job(JOBS / "bilstm.toml", ["data.bucket=true"]))
    assert not parent_of(parent, load_job(JOBS / "bilstm.toml", ["model.dropout=0.1"]))[0].continues


def test_a_parent_without_checkpoints_is_refused(tmp_path: Path) -> None:
    """No checkpoint is left that a run could continue."""
    parent = write_parent(tmp_path, LSTM)
    shutil.rmtree(parent.path("checkpoints"))
    with pytest.raises(InputError, match="checkpoint of this run is gone"):
        parent_of(parent, LSTM)


CALLBACK = f"train.callbacks=['{JOBS}/own/parts.py:stop_overfitting']"
SCHEDULE = ("train.schedule_epochs (0 stands for train.epochs)",)


@pytest.mark.parametrize(
    ("settings", "epochs", "differences"),
    [
        (["train.schedule=cosine", "train.schedule_epochs=4"], 20, ()),
        (["train.schedule=cosine"], 20, SCHEDULE),
        ([CALLBACK], 7, ()),
        ([CALLBACK], 20, ("train.epochs (passed to train.callbacks)",)),
    ],
)
def test_steps_that_depend_on_the_number_of_epochs_make_another_job(
    tmp_path: Path, settings: list[str], epochs: int, differences: tuple[str, ...]
) -> None:
    """With more epochs each step of the parent could have had another rate or another effect."""
    parent = write_parent(tmp_path, load_job(JOBS / "lstm.toml", [*settings, "train.epochs=7"]))
    longer = load_job(JOBS / "lstm.toml", [*settings, f"train.epochs={epochs}"])
    found, _ = parent_of(parent, longer)
    assert (found.differences, found.continues) == (differences, not differences)


@pytest.mark.parametrize(("edited", "epochs"), [(False, 20), (True, 20), (False, 2)])
def test_a_checkpoint_of_another_job_or_of_later_epochs_is_refused(
    tmp_path: Path, edited: bool, epochs: int
) -> None:
    """A parent whose job.toml was edited after the training has a checkpoint of another job."""
    parent = write_parent(tmp_path, LSTM)
    no_step: Any = None
    identity = RunContext(parent, LSTM, DATA).identity
    meta = json.dumps({"epoch": 3, "step": 0, "identity": identity}).encode()
    np.savez(parent.checkpoints()[0], progress=np.frombuffer(meta, np.uint8))
    changes = ["train.learning_rate=0.005"] if edited else []
    parent.path("job.toml").write_text(load_job(JOBS / "lstm.toml", changes).to_toml())
    more = load_job(JOBS / "lstm.toml", [*changes, f"train.epochs={epochs}"])
    if epochs < 3:
        with pytest.raises(InputError, match=r"trained 3 epochs, .* train\.epochs to 3 or more"):
            parent_of(parent, more)
        parent.path("result.json").unlink()  # a running parent may have an older checkpoint
    found, context = parent_of(parent, more)
    context.run.take_lease()
    if edited or epochs < 3:
        with pytest.raises(InputError, match=r"do not match the run's job\.toml, or have more"):
            begin_with(found, context, no_step)
    else:
        assert begin_with(found, context, no_step) == []
    assert bool(context.run.checkpoints()) == (not edited and epochs > 3)
