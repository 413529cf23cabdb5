"""`harness ensemble`: weights, scores, files, refusals, and classes of raw texts."""

import errno
import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.dataset import Dataset
from harness.data.dataset_folder import save_folder
from harness.data.own_texts import open_source
from harness.data.sources import make_dataset
from harness.errors import DiskError, InputError
from harness.report.baseline import NgramModel, fit_ngrams
from harness.report.collect import group_runs, scored_runs
from harness.report.ensemble import averaged, best_weights, classifier_of, open_model
from harness.report.statistics import read_predictions
from harness.system.files import read_plain_file, sha256_of
from harness.tracking.run_dir import CHECKSUMS, RunDirectory
from harness.training.launch import evaluate_again
from tests.conftest import Harness, calm_run, failing
from tests.data.made_up_texts import make_rows, write_csv
from tests.inference.test_export import odd_texts
from tests.report.finished_runs import noisy, write_finished
from tests.report.small_data import WORDS, small_data

ALL = ("data.validation_split=0", "train.epochs=2", "train.keep=last")


@pytest.fixture
def dataset(harness: Harness) -> Dataset:
    """A small dataset that the commands find through HARNESS_DATA."""
    harness.environment["HARNESS_DATA"] = str(harness.folder / "data")
    return small_data(harness.folder / "data", 100)


def made(harness: Harness, *words: object) -> Path:
    """Run `harness ensemble`, and return the folder of the new ensemble."""
    done = harness.run_here("ensemble", *words)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("records"))
    return harness.folder / line.split()[1]


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of `ensemble.toml` and `result.json`."""
    toml = tomllib.loads((folder / "ensemble.toml").read_text())
    return toml, json.loads((folder / "result.json").read_text())


def arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as content:
        return content["probabilities"], content["labels"]


@pytest.mark.parametrize("num", [2, 3])
def test_the_weights_have_the_least_loss(num: int) -> None:
    """No weights on a grid have less loss. The weights are deterministic; a bad member gets 0."""
    labels = np.random.default_rng(5).integers(0, 2, 400)
    given = [noisy(labels, seed, noise=0.5 + seed) for seed in range(num)]
    members = [np.stack([1 - each, each], axis=1).astype(np.float64) for each in given]

    def loss(weights: Any) -> float:
        mixed = averaged(weights, members)
        return float(-np.log(mixed[np.arange(len(labels)), labels]).mean())

    weights = best_weights(labels, members)
    assert weights == best_weights(labels, members)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    steps = np.linspace(0, 1, 21)
    grid = [(w, *rest) for w in steps for rest in ([1 - w],) if num == 2]
    grid += [(v, w, 1 - v - w) for v in steps for w in steps if num == 3 and v + w <= 1]
    assert loss(weights) <= min(map(loss, grid)) + 1e-7
    wrong = 1 - members[0]
    assert best_weights(labels, [*members, wrong])[-1] == 0


def test_an_ensemble_of_runs_is_scored_like_a_run(harness: Harness, dataset: Dataset) -> None:
    """The probabilities are a weighted mean; the weights are chosen on the validation reviews."""
    runs = [write_finished(harness.runs / "lstm" / f"s{n}", dataset, n) for n in (1, 2)]
    folder = made(harness, *runs, "--run-id", "both")
    assert folder == harness.runs / "ensemble_lstm/both"
    toml, result = read(folder)
    weights = [each["weight"] for each in toml["runs"]]
    assert sum(weights) == pytest.approx(1)
    for name in ("validation_predictions.npz", "predictions.npz"):
        parts = [arrays(run / name)[0] for run in runs]
        probabilities, labels = arrays(folder / name)
        assert [probabilities.dtype, labels.dtype] == [np.dtype("f4"), np.dtype("i4")]
        np.testing.assert_allclose(probabilities, np.average(parts, 0, weights), atol=1e-6)
    members = [arrays(run / "validation_predictions.npz") for run in runs]
    by_class = [np.stack([1 - p, p], axis=1).astype(np.float64) for p, _ in members]
    assert weights == best_weights(members[0][1].astype(np.int64), by_class)
    assert result["accuracy"] == pytest.approx(((probabilities > 0.5) == labels).mean())
    assert (result["architecture"], result["seed"], result["parameters"]) == ("ensemble", 1, 200)
    assert result["training_s"] == 3
    # The test set chooses nothing: other test predictions don't change the weights.
    for run in runs:
        probabilities, labels = arrays(run / "predictions.npz")
        np.savez(run / "predictions.npz", probabilities=1 - probabilities, labels=labels)
        changed = json.loads((run / "result.json").read_text())
        changed["accuracy"] = 1 - changed["accuracy"]
        (run / "result.json").write_text(json.dumps(changed))
    again, _ = read(made(harness, *runs, "--run-id", "other"))
    assert [each["weight"] for each in again["runs"]] == weights


def test_with_ngrams_and_weights_for_runs_on_all_reviews(
    harness: Harness, dataset: Dataset
) -> None:
    """The linear model is fit to the reviews of the runs. `--weights-from` copies the weights."""
    runs = harness.runs / "lstm"
    part = made(harness, write_finished(runs / "v1", dataset, 1, noise=0.6), "--with", "ngrams")
    whole_run = write_finished(runs / "a1", dataset, 7, *ALL)
    words = (whole_run, "--with", "ngrams", "--weights-from", part, "--run-id", "all")
    whole = made(harness, *words)
    (toml, result), (all_toml, all_result) = read(part), read(whole)
    weights, all_weights = (
        [each["runs"][0]["weight"], each["ngrams_weight"]] for each in (toml, all_toml)
    )
    assert weights == all_weights
    assert 0 < weights[0] < 1
    assert (all_toml["weights_from"], toml["weights_from"]) == (str(part), "")
    assert (result["num_validation"], all_result["num_validation"]) == (10, 0)
    assert not (whole / "validation_predictions.npz").exists()
    assert {*NgramModel.from_bytes((part / "ngrams.npz").read_bytes()).words} == {*WORDS}
    for folder, run, num in ((part, runs / "v1", 90), (whole, whole_run, 100)):
        linear = fit_ngrams(dataset.train.take(num)).probabilities(dataset.test)[:, 1]
        expected = np.average([arrays(run / "predictions.npz")[0], linear], 0, weights)
        np.testing.assert_allclose(arrays(folder / "predictions.npz")[0], expected, atol=1e-6)


def test_ensembles_with_a_common_run_are_no_two_seeds(
    harness: Harness, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their scores are not independent, so their interval would be too narrow.

    The recorded time, not the name, decides which ensemble is the first.
    """
    runs = [write_finished(harness.runs / f"lstm/{seed}", dataset, seed) for seed in (1, 2, 3, 4)]
    with monkeypatch.context() as patched:
        patched.setattr("harness.report.ensemble.TIME", "2026-01-02T10:00:00%z")
        made(harness, *runs[:2], "--run-id", "b")
    for name, members in (("a", runs[1::-1]), ("c", runs[1:3]), ("d", runs[2:])):
        made(harness, *members, "--run-id", name)
    ((group,), repeated) = group_runs(scored_runs([harness.runs / "ensemble_lstm"])[0])
    assert [run.folder.name for run in group.all_runs] == ["b", "d"]
    assert [(each.folder.name, each.kind) for each in repeated] == [(n, "repeated") for n in "ac"]


def test_tfidf_reads_as_many_words_as_a_member(harness: Harness, dataset: Dataset) -> None:
    """The runs of an ensemble may have different values of `data.maxlen`."""
    for num in (2, 3):
        write_finished(harness.runs / f"lstm/{num}", dataset, num, f"data.maxlen={num}")
    ensemble = made(harness, *sorted(harness.runs.glob("lstm/*")))
    assert "tf-idf, last 3 " in harness.run_here("compare", ensemble).stdout


def test_other_commands_know_an_ensemble(
    harness: Harness, dataset: Dataset, tmp_path: Path
) -> None:
    """`compare` and `status` show an ensemble; commands for single runs refuse it in one line."""
    for seed in (1, 2):
        run = write_finished(harness.runs / "lstm" / f"s{seed}", dataset, seed)
        made(harness, run, "--with", "ngrams", "--run-id", f"s{seed}")
    out = tmp_path / "out"
    compared = harness.run_here("compare", harness.runs, "--baseline", "ngrams", "--out", out)
    assert compared.returncode == 0, compared.stderr
    assert "ensemble_lstm_ngrams" in (out / "comparison.csv").read_text()
    (row,) = (line for line in compared.stdout.splitlines() if line.startswith("ensemble_lstm"))
    assert row.split()[-4:-2] == ["ensemble", "8,320"]
    assert "ensemble_lstm_ngrams" in compared.stdout.split("n-grams", 2)[-1]
    ensemble = harness.runs / "ensemble_lstm_ngrams/s1"
    shown = json.loads(harness.run_here("status", "--json").stdout)
    states = {each["run"]: each["state"] for each in shown}
    assert states == dict.fromkeys(
        ("lstm/s1", "lstm/s2", "ensemble_lstm_ngrams/s1", "ensemble_lstm_ngrams/s2"), "finished"
    )
    for words in (
        ("evaluate", ensemble),
        ("resume", ensemble),
        ("reproduce", ensemble, "--to", tmp_path / "new"),
        ("ensemble", ensemble, harness.runs / "lstm/s1"),
    ):
        assert "is an ensemble, which only" in harness.refuse(*words)
    assert harness.run_here("prune", "--yes").returncode == 0
    assert (harness.runs / "lstm/s1/model.keras").exists()


def test_bad_members_are_refused(
    harness: Harness, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is one line, the exit code is 2, and no file is written, also on a full disk."""
    runs = harness.runs / "lstm"
    first, second = (write_finished(runs / f"s{n}", dataset, n) for n in (1, 2))
    whole = write_finished(runs / "all", dataset, 3, *ALL)
    slower = write_finished(runs / "slower", dataset, 4, *ALL, "train.learning_rate=0.01")
    wider = write_finished(runs / "wider", dataset, 5, *ALL, "model.units=5")
    short = write_finished(runs / "short", dataset, 5, "data.validation_split=0.3")
    unfinished = write_finished(runs / "unfinished", dataset, 6)
    (unfinished / "result.json").unlink()
    old = write_finished(runs / "old", dataset, 7)
    (old / "validation_predictions.npz").unlink()
    broken = write_finished(runs / "broken", dataset, 8)
    (broken / "validation_predictions.npz").write_bytes(b"PK\x03\x04 cut")
    mixed = write_finished(runs / "mixed", dataset, 11)
    content = json.loads((mixed / "result.json").read_text())
    (mixed / "result.json").write_text(json.dumps(content | {"classes": ["a", "b", "c"]}))
    other_data = small_data(harness.folder / "other", 60)
    other = write_finished(runs / "other", other_data, 10)
    part = made(harness, first, "--with", "ngrams", "--run-id", "part")
    two = made(harness, first, second, "--run-id", "two")
    before = sorted(harness.runs.rglob("*"))
    refused: list[tuple[tuple[object, ...], str]] = [
        ((first,), "a single run is not an ensemble"),
        ((first, second, first.parent / "." / first.name), "is named twice; name each run once"),
        ((first, unfinished), "unfinished: not begun; give finished runs"),
        ((first, old), "validation_predictions.npz can't be used: No such file"),
        ((first, broken), "validation_predictions.npz can't be used"),
        ((first, other), "has data = "),
        ((first, mixed), "predictions.npz has the shape ("),
        ((first, short), "has validation reviews = 30, "),
        ((whole, "--with", "ngrams"), "give --weights-from ENSEMBLE"),
        (
            (whole, "--with", "ngrams", "--weights-from", first),
            "ensemble.toml is missing or broken",
        ),
        ((whole, slower, "--weights-from", part), "has ensemble.runs = lstm, but the new ensemble"),
        ((whole, wider, "--weights-from", two), "has model.units = "),
        (
            (whole, slower, "--with", "ngrams", "--weights-from", two),
            "has ensemble.ngrams = False, but the new ensemble has True; give an ensemble of the",
        ),
        ((first, second, "--run-id", "two"), "exists already"),
        ((first, second, "--run-id", "a/b"), "should be at most 100 letters"),
    ]
    for words, reason in refused:
        assert reason in harness.refuse("ensemble", *words), words
    del harness.environment["HARNESS_DATA"]
    save_folder(make_dataset(other_data.train, other_data.test, other_data.vocab), tmp_path / "no")
    words = (second, "--with", "ngrams", "--run-id", "x", "--data", tmp_path / "no")
    assert "by --data" in harness.refuse("ensemble", *words)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.report.ensemble.content_of", full)
    done = harness.run_here("ensemble", first, second, "--run-id", "full")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No space left on device" in done.stderr
    assert sorted(harness.runs.rglob("*")) == before


def test_changed_predictions_are_refused(
    harness: Harness, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """An ensemble refuses them, and a report leaves them out, also those of an ensemble."""
    runs = [write_finished(harness.runs / f"lstm/s{seed}", dataset, seed) for seed in (1, 2)]
    names = ("predictions.npz", "validation_predictions.npz")
    for run in runs:
        result = json.loads((run / "result.json").read_text())
        result |= {CHECKSUMS[name]: sha256_of(run / name) for name in names}
        (run / "result.json").write_text(json.dumps(result))
    folders = [*runs, made(harness, *runs, "--run-id", "both")]
    for folder, name in itertools.product(folders, names):
        kept = (folder / name).read_bytes()
        _, labels = arrays(folder / name)
        np.savez(folder / name, probabilities=labels.astype("f4"), labels=labels)
        if folder in runs:
            said = harness.refuse("ensemble", *runs, "--run-id", "changed")
            assert f"run {folder}: {folder / name} can't be used: {name} has changed" in said
            assert (
                f"restore the file from a copy, or train the run again: harness train {folder}"
                in said
            )
        if name == "predictions.npz":
            groups, _ = group_runs(scored_runs([harness.runs])[0])
            found = read_predictions(groups[0])
            assert found
            assert sum(map(len, found.by_job.values())) == 2
            error = capsys.readouterr().err
            assert f"the predictions of {folder} are left out: {name} has changed" in error
        (folder / name).write_bytes(kept)


def test_the_texts_of_an_ensemble_are_found(harness: Harness) -> None:
    """The first run's record names the texts, `--data` their new place; other texts are refused."""
    source = write_csv(harness.folder / "mine.csv", make_rows(200))
    run = write_finished(harness.runs / "lstm/s1", open_source(source), 1, f"data.source={source}")
    words = (run, "--with", "ngrams", "--run-id")
    done = harness.run_here("compare", made(harness, *words, "a"), "--baseline", "ngrams")
    assert done.returncode == 0, done.stderr
    assert "tf-idf, whole" in done.stdout
    moved = source.rename(harness.folder / "moved.csv")
    other = write_csv(harness.folder / "other.csv", make_rows(201))
    said = harness.refuse("ensemble", *words, "b", "--data", other)
    assert f"data.source {other} has changed" in said
    made(harness, *words, "b", "--data", moved)
    with pytest.raises(InputError, match=r"data\.source .*other\.csv has changed since"):
        evaluate_again(RunDirectory(run), other)


def test_a_broken_ensemble_is_refused(harness: Harness, dataset: Dataset) -> None:
    """Commands for this ensemble refuse it in one line; commands for all runs do not fail.

    The remedy for a broken result is not `harness resume`, which refuses ensembles.
    """
    run = write_finished(harness.runs / "lstm/s1", dataset, 1)
    whole = write_finished(harness.runs / "lstm/all", dataset, 2, *ALL)
    folder = made(harness, run, "--with", "ngrams", "--run-id", "x")
    text = (folder / "ensemble.toml").read_text()
    for broken, reason in (
        ("", "is missing or broken"),
        (text[: text.index("model_checksum")], "is missing or broken"),
        (text.replace("weight = ", "weight = -1"), "is missing or broken"),
        (text.replace("format = ", "format = 9"), "was written by harness"),
        ("\0", "is missing or broken"),
    ):
        (folder / "ensemble.toml").write_text(broken)
        for words in (
            ("predict", folder, "a fine film"),
            ("ensemble", whole, "--with", "ngrams", "--weights-from", folder),
        ):
            assert reason in harness.refuse(*words), broken
        for name in ("status", "compare"):
            done = harness.run_here(name, *(["--baseline=none"] if name == "compare" else []))
            assert done.returncode == 0, done.stderr
            assert "lstm" in done.stdout
    (folder / "ensemble.toml").write_text(text)
    for do in (lambda: (folder / "result.json").write_text("{"), (folder / "result.json").unlink):
        do()
        done = harness.run_here("compare", "--baseline=none")
        said = done.stdout + done.stderr
        assert "result.json is broken; make the ensemble again with harness ensemble" in said
        assert "resume" not in said


@pytest.mark.full
def test_predict_gives_the_weighted_mean(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ensemble and runs may have moved together. Missing and changed models are refused."""
    runs = [calm_run(harness, "bilstm"), calm_run(harness, "lstm")]
    done = harness.run("ensemble", *runs, "--with", "ngrams", "--run-id", "all")
    assert done.returncode == 0, done.stderr
    folder = harness.runs / "ensemble_bilstm_lstm_ngrams/all"
    texts = odd_texts((runs[0] / "vocabulary.txt").read_text().split("\n"), 200)
    file = tmp_path / "texts"
    file.write_text("\n".join(text.replace("\r", " ") for text in texts) + "\n")
    alone = [probabilities(harness, run, file)[0] for run in runs]
    harness.runs.rename(tmp_path / "moved")
    folder, runs = (
        (tmp_path / "moved/ensemble_bilstm_lstm_ngrams/all"),
        [tmp_path / "moved" / run.relative_to(harness.runs) for run in runs],
    )
    together, answered = probabilities(harness, folder, file)
    linear = NgramModel.from_bytes((folder / "ngrams.npz").read_bytes()).of_texts(answered)
    toml = (folder / "ensemble.toml").read_text()
    weights = [float(line.split(" = ")[1]) for line in toml.splitlines() if "weight = " in line]
    weights = [*weights[1:], weights[0]]  # the weight of the linear model comes first
    assert len(weights) == 3
    np.testing.assert_allclose(together, np.average([*alone, linear], 0, weights), atol=1e-6)
    assert "ensemble" in harness.refuse("export", folder, "--out", tmp_path / "out")
    model, content = runs[1] / "model.keras", (runs[1] / "model.keras").read_bytes()
    model.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.keras has changed; make the ensemble again"):
        classifier_of(open_model(folder))
    model.write_bytes(content)
    fails = failing(read_plain_file, folder / "ngrams.npz", errno.EIO)
    with monkeypatch.context() as patched:
        patched.setattr("harness.report.ensemble.read_plain_file", fails)
        with pytest.raises(DiskError, match="; try again later"):
            classifier_of(open_model(folder))
    (folder / "ngrams.npz").unlink()
    with pytest.raises(InputError, match=r"ngrams\.npz can't be used"):
        classifier_of(open_model(folder))
    runs[1].rename(tmp_path / "gone")
    assert "no such folder" in harness.refuse("predict", folder, "a fine film")


def probabilities(harness: Harness, folder: Path, file: Path) -> tuple[np.ndarray, list[str]]:
    """Return the probabilities that `harness predict` prints for a file, and the texts."""
    done = harness.run("predict", folder, "--json", "--file", file)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return np.array([[*each["probabilities"].values()] for each in found]), [
        each["text"] for each in found
    ]
