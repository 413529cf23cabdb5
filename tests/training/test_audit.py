"""An audit confirms honest runs, detects planted numbers, and changes no file of the run."""

import hashlib
import io
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import harness as package
from harness.compute import evaluator, train_step
from harness.compute.evaluator import Evaluator
from harness.compute.execution_plan import ExecutionPlan, choose
from harness.compute.network import build_network
from harness.compute.recurrent import kernels_of
from harness.compute.strategy import Devices, one_device
from harness.data.input_pipeline import Batch, Reviews
from harness.errors import DiskError, InputError
from harness.job.job_file import load_job
from harness.system.files import MAX_RECORD_BYTES
from harness.tracking.audits import keep_audit, mark_of
from harness.tracking.run_dir import RunDirectory
from harness.training.audit import (
    Audit,
    Auditor,
    Check,
    Record,
    Start,
    Subject,
    compared,
    gap,
    read_subject,
)
from harness.training.metrics import test_scores as scores_of
from tests.conftest import JOBS, Harness, calm_run, results
from tests.conftest import metrics as metrics_of
from tests.training.flips import PLACES, change_json, train_with_flip, write_checksums
from tests.training.kills import killed_on_two, trained_with_kills


def contents(run: Path) -> dict[Path, tuple[bytes, int]]:
    """Return the content and the modification time of every file of a run."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.full
def test_a_killed_run_of_two_replicas_is_equal_to_the_byte(harness: Harness) -> None:
    """The audit changes no file of the run; `audited` finds audits in the auditor's folder."""
    run = killed_on_two(harness)
    before = contents(run)
    done = harness.succeed("audit", run, "--full", "--runs", harness.folder / "mine")
    *_, sentence = done.stdout.splitlines()
    assert sentence.startswith(f"run {run}: the audit (full, ")
    assert sentence.endswith(" s) computed the same numbers as the run, to the byte")
    assert "differs" not in done.stdout
    assert "rounding" not in done.stdout
    assert contents(run) == before


@pytest.mark.full
def test_another_number_of_replicas_differs_by_measured_rounding(harness: Harness) -> None:
    """An audit on two replicas confirms a run of one replica within rounding."""
    done = harness.succeed("audit", calm_run(harness, "lstm"), "--devices", "cpu:2", "--full")
    *rows, sentence = done.stdout.splitlines()
    assert "computed the same numbers as the run, within rounding" in sentence
    assert any(row.startswith("model.keras") and " allowed" in row for row in rows)
    assert "the devices were 1 × CPU and are now 2 × CPU" in sentence
    assert any(
        re.search(r"measured here .* on cpu:2 and .* on cpu:1: .*loss [0-9.e-]+, ", row)
        for row in rows
    )


def test_values_are_equal_only_to_the_bit() -> None:
    """Types, shapes and the signs of zeros must be equal, too."""
    zeros = np.zeros(2, np.float32)
    assert gap(zeros, zeros.copy()) == 0
    assert 0 < gap(zeros, -zeros) < 1e-300
    assert 0 < gap(zeros, zeros.astype(np.float64)) < 1e-300
    assert gap(zeros, np.zeros(3, np.float32)) == gap("a", "b") == np.inf


def test_others_can_not_write_to_the_folder_of_audits(tmp_path: Path) -> None:
    """The user's umask has no effect; `tests/report/test_collect.py` changes the folder's mode."""
    before = os.umask(0)
    try:
        keep_audit(tmp_path, "0" * 64, {"depth": "full", "outcome": "equal"})
    finally:
        os.umask(before)
    (kept,) = (tmp_path / ".audits").iterdir()
    assert (kept.parent.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o755, 0o644)


def broken(name: str, content: str) -> Callable[[Path], object]:
    """Return a function that overwrites a file of a run."""
    return lambda run: (run / name).write_text(content)


def changed(name: str, **values: Any) -> Callable[[Path], object]:
    """Return a function that changes values in a JSON file of a run."""
    return lambda run: change_json(run / name, **values)


def as_trial(run: Path) -> None:
    """Change a run to one that is not tested, and that saves no validation predictions."""
    (run / "validation_predictions.npz").unlink()
    job = (run / "job.toml").read_text()
    (run / "job.toml").write_text(job.replace("test = true", "test = false"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "result.json").unlink(), "is unfinished and has no model yet"),
        (lambda run: (run / "model.keras").unlink(), "has no model.keras"),
        (changed("provenance.json", format=5), "was written by harness 0.3.0 (format 5)"),
        (changed("provenance.json", plan={"way": "magic"}), "the run's record has no valid plan"),
        (as_trial, "/runs/bilstm/copy: is a trial of a search, and trials save no predictions"),
        (changed("result.json", num_replicas="2"), "its record is broken (num_replicas)"),
        (
            changed("provenance.json", dataset={"is_sample": True, "checksum": "0"}),
            "/runs/bilstm/copy: began with other data (",
        ),
        (broken("provenance.json", "{"), "provenance.json is broken"),
        (broken("result.json", "{"), "result.json: is broken"),
    ],
)
def test_a_run_that_cannot_be_audited_is_refused_in_one_line(
    finished: tuple[Harness, Path], tmp_path: Path, change: Any, message: str
) -> None:
    """The command exits before it imports TensorFlow, and writes no record."""
    harness, run = finished
    copy = shutil.copytree(run, tmp_path / "runs/bilstm/copy")
    change(copy)
    done = harness.run_here("audit", copy, "--runs", tmp_path / "mine")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "mine").exists()


def test_a_run_that_cannot_be_audited_leaves_the_others(
    finished: tuple[Harness, Path], tmp_path: Path
) -> None:
    """All other runs are audited, even if no audit can be saved.

    Each audit uses as many TensorFlow threads as the training of the run. The audit of a run with
    two replicas reports no change of devices.
    """
    harness, run = finished
    copy, other = (shutil.copytree(run, tmp_path / name) for name in ("copy", "other"))
    broken("result.json", "{")(copy)
    plan = json.loads((run / "provenance.json").read_text())["plan"]
    starts = [{"devices": [{"device": "cpu:0"}, {"device": "cpu:1"}]}]
    changed("provenance.json", plan=plan | {"threads": plan["threads"] + 1}, starts=starts)(other)
    changed("result.json", num_replicas=2)(other)
    (no_folder := tmp_path / "file").touch()
    done = harness.run("audit", copy, run, other, "--quick", "--runs", no_folder)
    assert done.returncode == 2, done.stdout + done.stderr
    for each in (run, other):
        assert f"run {each}: the audit (quick, " in done.stdout
    assert "the devices were" not in done.stdout
    first, *others = done.stderr.splitlines()
    assert "result.json: is broken" in first
    assert len(others) == 2
    for line in others:
        assert f"--runs {no_folder}: the audit can't be saved (" in line


def test_a_full_scratch_disk_is_no_difference(
    finished: tuple[Harness, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The auditor's machine failed; this says nothing about the run."""
    auditor: Any = SimpleNamespace(scratch=tmp_path / "file")
    auditor.scratch.touch()
    with pytest.raises(DiskError, match=r"can't be written: .*; free up space, or set TMP"):
        compared("model", Auditor._model_in, auditor, b"content")
    monkeypatch.setattr(tempfile, "tempdir", str(auditor.scratch))
    harness, run = finished
    done = harness.run_here("audit", run, "--runs", tmp_path / "mine")
    assert done.returncode == 2
    assert f"run {run}: can't be audited here: [Errno 20] Not a directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_may_be_larger_than_any_record(
    finished: tuple[Harness, Path], tmp_path: Path
) -> None:
    """An audit reads the same files as `harness predict`."""
    copy = shutil.copytree(finished[1], tmp_path / "copy")
    os.truncate(copy / "model.keras", MAX_RECORD_BYTES + 1)
    assert read_subject(copy, None, trains=False).files["model.keras"].endswith(b"\0")


@pytest.mark.parametrize("name", ["texts \N{GRINNING FACE}.csv", 'a "quoted" \\ name', "b=c"])
def test_texts_may_have_any_name(finished: tuple[Harness, Path], tmp_path: Path, name: str) -> None:
    """The option `--data` names the user's texts."""
    copy = shutil.copytree(finished[1], tmp_path / "copy")
    job = (copy / "job.toml").read_text()
    (copy / "job.toml").write_text(job.replace('source = ""', 'source = "/moved.csv"'))
    subject = read_subject(copy, tmp_path / name, trains=False)
    assert subject.job.data.source == str(tmp_path / name)


def test_the_name_of_a_run_may_end_in_dots(finished: tuple[Harness, Path], tmp_path: Path) -> None:
    """The audit's copy of the run has the name of the run's folder."""
    run = finished[1]
    auditor = object.__new__(Auditor)
    auditor.subject = read_subject(run / "tensorboard" / "..", None, trains=False)
    auditor.scratch = tmp_path
    copy = auditor._begin("quick", Devices("cpu", 1), ExecutionPlan("keras", 1))
    assert copy.folder == tmp_path / "quick/runs" / run.name


def elsewhere(folder: Path, patience: int, num_epochs: int) -> Any:
    """Return an auditor of a run of `num_epochs`, on a machine where rounding differs."""
    auditor = object.__new__(Auditor)
    job = load_job(JOBS / "lstm.toml", [f"train.early_stopping_patience={patience}"])
    record = Record(starts=[Start(devices=[], processor="theirs")], num_replicas=1, dataset={})
    files = {"metrics.jsonl": metrics(num_epochs)}
    auditor.subject = Subject(Path("run"), job, record, {}, files)
    auditor.scratch = folder
    auditor.devices, auditor.options, auditor.tolerance = Devices("cpu", 1), [], ""
    auditor.plan, auditor.code_changes = ExecutionPlan("keras", 1), []
    auditor.smallest_class = 5
    return auditor


def metrics(num_epochs: int, off: float = 0.0) -> bytes:
    lines = [{"epoch": number, "loss": 0.5 + off} for number in range(1, num_epochs + 1)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def trained_here(folder: Path, num_epochs: int, off: float = 0.0) -> RunDirectory:
    """Write the files of a run that the audit has trained."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(metrics(num_epochs, off))
    start = {"devices": [], "packages": {}, "processor": "mine"}
    (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
    return RunDirectory(folder)


@pytest.mark.parametrize(
    ("patience", "trained", "details"),
    [
        (1, (5, 6), ["after epoch 5, where the shorter of the two training", "loss, epoch 1 by"]),
        (1, (6, 4), ["loss, epoch 1 by 1e-05, 0.0001 allowed"]),
        (0, (5, 6), ["epoch, epoch 6 is not as recorded"]),
    ],
)
def test_other_trainings_may_be_shorter(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patience: int,
    trained: tuple[int, ...],
    details: list[str],
) -> None:
    """The audit, or the training that measures rounding, trained an epoch less than the run."""
    auditor = elsewhere(tmp_path, patience, 6)
    runs = [
        trained_here(tmp_path / str(number), num_epochs, 1e-5 * number)
        for number, num_epochs in enumerate(trained, 1)
    ]
    monkeypatch.setattr(auditor, "_train", lambda *_: runs.pop(0))
    checks = [*auditor.trained(6)]
    for check, text in zip(checks, details, strict=True):
        assert text in check.detail
    assert (checks[-1].outcome == "differs") == (patience == 0)
    audit = Audit(Path("run"), "", "", "6 epochs", tuple(checks[:1]), (), "", 0, 0)
    assert audit.outcome == ("within rounding" if patience else "differs")
    assert "between keras on cpu:1 and xla on cpu:2: loss 0.0001" in auditor.tolerance


def test_equal_files_need_no_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, the audit trains in another way only if the files differ."""
    auditor, run = elsewhere(tmp_path, 0, 3), trained_here(tmp_path / "again", 3)
    monkeypatch.setattr(auditor, "_train", lambda *_: run)
    assert [check.outcome for check in auditor.trained(3)] == ["equal"]
    assert auditor.tolerance == ""


def use_made_up_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Keras and the harness trace graphs for a GPU. The graphs can't run."""
    device = SimpleNamespace(name="GPU:0")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [device])
    for module in (train_step, evaluator):
        monkeypatch.setattr(module, "num_own_gpus", lambda: 1)


SMALL = ("data.vocab_size=100", "data.maxlen=12", "train.batch_size=20", "model.units=4")


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "bilstm"])
def test_the_other_training_uses_other_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """Equal kernels would show no rounding, and honest runs would then count as different."""
    job = load_job(JOBS / f"{name}.toml", SMALL)
    auditor = elsewhere(tmp_path, 0, 1)
    auditor.devices, auditor.plan = Devices(kind, 1), choose(job, kind, 1)
    if kind == "gpu":
        use_made_up_gpu(monkeypatch)

    def kernels(plan: ExecutionPlan) -> list[str]:
        step = train_step.TrainStep(job, one_device(), plan)
        shapes = [([20, 12], tf.int32), *[([20], each) for each in (tf.float32, tf.float32)]]
        shapes += [([20], tf.int32), ([], tf.float32), ([], tf.int64)]
        batch = Batch(*[tf.TensorSpec(*each) for each in shapes])
        traced = tf.function(lambda batch: step.replica_step(batch, None), autograph=False)
        graph = traced.get_concrete_function(batch).graph
        return [*kernels_of(step.model, graph, plan.way).values()]

    _, other = auditor._other_training()
    assert kernels(other) != kernels(auditor.plan)
    model = job.model.model_copy(update={"architecture": "own.py:net"})
    auditor.subject = auditor.subject._replace(job=job.model_copy(update={"model": model}))
    assert auditor._other_training() != (auditor.devices, auditor.plan)


REVIEWS = Reviews(np.full(300, 9, np.int32), np.arange(301), np.zeros(300, np.int32))


def evaluated(auditor: Any, probabilities: np.ndarray) -> Check:
    """Compare a model's probabilities with `predictions.npz`, on another machine."""
    file = io.BytesIO()
    np.savez(file, probabilities=probabilities)
    files = {"predictions.npz": file.getvalue(), "model.keras": b""}
    auditor.subject = SimpleNamespace(job=auditor.job, files=files)
    return compared("model", Auditor._model, auditor, "predictions.npz", REVIEWS, False)


HASHED = """
import keras
def net(vocab_size, config, *, num_outputs, options):
    words = keras.Input([None], dtype="int32")
    channels = keras.layers.Embedding(50, 4)(keras.layers.Hashing(50)(words))
    pooled = keras.layers.GlobalAveragePooling1D()(channels)
    return keras.Model(words, keras.layers.Dense(num_outputs, activation="sigmoid")(pooled))
"""


@pytest.mark.parametrize("architecture", ["lstm", "hashed.py:net"])
def test_a_model_may_differ_by_rounding(tmp_path: Path, architecture: str) -> None:
    """The measure is the difference between evaluations with and without XLA, if XLA can do it.

    XLA supports no operation on strings, such as the hash of a number's text.
    """
    (tmp_path / "hashed.py").write_text(HASHED)
    file = tmp_path / "job.toml"
    file.write_text(f'name = "job"\n[model]\narchitecture = "{architecture}"\n')
    job = load_job(file, SMALL)
    model, plan = build_network(job), choose(job, "cpu", 1)
    auditor: Any = SimpleNamespace(job=job, model=model, plan=plan, _model_in=lambda _: model)
    honest = Evaluator(model, one_device(), job, plan).probabilities(REVIEWS)
    for added, outcome in ((0, "equal"), (5e-7, "within rounding"), (1e-5, "differs")):
        assert evaluated(auditor, honest + np.float32(added)).outcome == outcome


@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_the_other_evaluation_does_not_use_cudnn(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On a GPU, another evaluation with cuDNN would show no rounding."""
    use_made_up_gpu(monkeypatch)
    uses_cudnn = []

    def trace(self: Evaluator, reviews: Reviews) -> np.ndarray:
        traced = tf.function(self._network, autograph=False)
        graph = traced.get_concrete_function(tf.TensorSpec([self.num_rows, 12], tf.int32)).graph
        uses_cudnn.append("CudnnRNN" in str(graph.as_graph_def()))
        return np.full(300, 0.5 + 1e-4 * self.num_rows, np.float32)

    monkeypatch.setattr(Evaluator, "probabilities", trace)
    job = load_job(JOBS / f"{name}.toml", SMALL)
    auditor: Any = SimpleNamespace(
        job=job, plan=choose(job, "gpu", 1), _model_in=lambda _: build_network(job)
    )
    auditor.model = build_network(job)
    assert evaluated(auditor, np.full(300, 0.5, np.float32)).outcome == "within rounding"
    assert uses_cudnn == [True, False]


@pytest.mark.parametrize(
    ("name", "found", "most"),
    [
        ("accuracy", (10, 12), 0.0021),
        ("f1", (10, 12), 0.21),
        ("recall", (10, 12), 0.21),
        ("f1_macro", (10, 12), 0.21),
        ("precision", (0, 1), 1.1),
    ],
)
def test_a_score_may_differ_by_the_reviews_of_the_smallest_class(
    tmp_path: Path, name: str, found: tuple[int, int], most: float
) -> None:
    """Two of 20 reviews cross the threshold; the first that is found makes the precision 1."""
    labels = np.repeat([1, 0], [20, 1980])
    before, after = (
        scores_of(labels, np.where(np.arange(2000) < num, 0.6, 0.4))[name] for num in found
    )
    auditor = elsewhere(tmp_path, 0, 1)
    auditor.smallest_class, auditor.num_scored = 20, 2000
    assert 0 < after - before <= auditor._least(f"val_{name}", before) < most


def test_a_training_that_ends_too_early_is_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one of three epochs, the process of the training can't go on."""
    auditor, run = elsewhere(tmp_path, 0, 3), trained_here(tmp_path / "again", 1)
    monkeypatch.setattr(auditor, "_begin", lambda *_: run)
    with pytest.raises(InputError, match=r"run run: can't be trained here: .*/again: is not a run"):
        auditor._train("again", auditor.devices, auditor.plan, 3)


@pytest.mark.full
def test_a_job_with_code_runs_only_where_it_is_trusted(harness: Harness) -> None:
    """The owner of the folder proves nothing, because a copy belongs to the user who copied it."""
    own, mark = harness.folder / "own.py", harness.folder / "mark"
    own.write_text(
        "import keras\n\n\ndef stop():\n    open('mark', 'a').close()\n"
        "    return keras.callbacks.Callback()\n"
    )
    words = ("--set", f'train.callbacks=["{own}:stop"]', "--set", "train.epochs=1")
    run = harness.trained("lstm", "own", *words)
    mark.unlink()
    done = harness.run_here("audit", run)
    assert done.returncode == 2
    assert "its job contains custom code (" in done.stderr
    assert not mark.exists()
    done = harness.succeed("audit", run, "--trust-code")
    assert "s) computed the same numbers as the run in the first epoch, to the byte" in done.stdout
    assert mark.exists()


def test_from_python_a_difference_is_an_answer(
    finished: tuple[Harness, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`harness.audit` returns a difference, but raises InputError if a run can't be audited."""
    harness, run = finished
    for name, value in harness.environment.items():
        monkeypatch.setenv(name, value)
    audit = package.audit(run, quick=True, runs=tmp_path)
    assert (audit.outcome, audit.depth) == ("equal", "quick")
    found = "trained nothing; the run's files, scores and model agree with each other, to the byte"
    assert found in audit.sentence
    copy = shutil.copytree(run, tmp_path / "copy")
    assert mark_of(tmp_path, copy) == "quick"
    with (copy / "job.toml").open("a") as file:
        file.write("# changed\n")
    assert mark_of(tmp_path, copy) == "", "the audit checked another job"
    change_json(copy / "result.json", f1=0.9999)
    audit = package.audit(copy, quick=True, runs=tmp_path)
    assert audit.outcome == "differs"
    assert "differs in scores of predictions.npz: f1 by " in audit.sentence
    change_json(copy / "result.json", "f1")
    change_json(copy / "provenance.json", commit="0" * 40)
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


def invent_validation_scores(run: Path) -> None:
    """Invent the validation accuracy, and remove the predictions that contradict it."""
    lines = [line | {"val_accuracy": 0.99} for line in metrics_of(run)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "validation_predictions.npz").unlink()
    change_json(run / "result.json", "validation_predictions_checksum", val_accuracy=0.99)
    write_checksums(run)


FORGED = {
    "seed": (changed("result.json", seed=7), "job: seed by 6"),
    "job": (changed("result.json", job="champion"), "job: job is not as recorded"),
    "architecture": (changed("result.json", architecture="lstm"), "job: architecture is not"),
    "size": (changed("result.json", recurrent_parameters=1), "job: recurrent_parameters by"),
    "title": (changed("result.json", data="IMDB"), "data: data is not as recorded"),
    "validation": (invent_validation_scores, "scores of validation_predictions.npz: the run's"),
}


@pytest.mark.parametrize("name", [*FORGED])
def test_a_forged_result_is_found(
    finished: tuple[Harness, Path], tmp_path: Path, name: str
) -> None:
    """The exit code says so even if the audit can't be saved; 2 would say that there is none."""
    harness, run = finished
    copy = shutil.copytree(run, tmp_path / "copy")
    (no_folder := tmp_path / "file").touch()
    forge, message = FORGED[name]
    forge(copy)
    done = harness.run("audit", copy, "--quick", "--runs", no_folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"run {copy}: differs in {message}" in done.stdout
    assert f"--runs {no_folder}: the audit can't be saved (" in done.stderr
    assert done.stderr.count("\n") == 1


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
        pytest.param("metrics", "full", marks=pytest.mark.slow),
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
    """A full audit finds every flip that changes a file."""
    for place in ("gradient", *PLACES):
        for number in range(5):
            run, where = flip(harness, place, number)
            changes = place == "vocabulary" or results(run) != results(harness.runs / "lstm/calm")
            found = audited(harness, run)["outcome"]
            assert found == ("differs" if changes else "equal"), where


HONEST = {
    "lstm": (),
    "bilstm": ("--set", "data.bucket=true"),
    "gru": ("--set", "train.keep=last", "--set", "train.xla=off"),
    "rnn": ("--set", "train.early_stopping_patience=1", "--set", "train.learning_rate=0.01"),
    "best": ("--set", "model.ngram_ratios=2", "--set", "model.embedding_dim=8"),
}


@pytest.mark.slow
@pytest.mark.parametrize("job", [*HONEST])
def test_thirty_honest_runs_are_equal_to_the_byte(harness: Harness, job: str) -> None:
    """Each job trains on one and on two replicas, with zero, one and two kills."""
    for devices in ("cpu:1", "cpu:2"):
        for kills in range(3):
            words = [*HONEST[job], "--devices", devices, "--seed", kills + 1]
            steps = [5 + 13 * number for number in range(kills)]
            run = trained_with_kills(harness, job, steps, *words)
            assert audited(harness, run)["outcome"] == "equal"
            shutil.rmtree(run)
