"""Raw texts are classified by a linear model in a file, and by an ensemble."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import Dataset, make_split
from harness.data.ngrams import to_archive
from harness.data.sources import make_dataset
from harness.errors import InputError
from harness.report.baseline import NgramModel, fit_ngrams
from harness.report.ensemble import classifier_of, open_model
from tests.conftest import Harness, calm_run
from tests.inference.test_export import ODD, odd_texts
from tests.report.test_baseline import as_texts, noisy

WORDS = [*(f"w{i}" for i in range(1, 31)), *ODD, "à"]


def made_up(num_classes: int) -> Dataset:
    train, test = (make_split(*noisy(300, seed, num_classes)) for seed in (1, 2))
    return make_dataset(train, test, WORDS)


def kept(dataset: Dataset) -> NgramModel:
    model = fit_ngrams(dataset.train)
    words = [dataset.vocab[rank - 1] for rank in model.ngrams[0].tolist()]
    return replace(model, words=words)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_linear_model_in_a_file_classifies_texts(num_classes: int) -> None:
    """The stored model equals the original one, also for texts with unknown words."""
    dataset = made_up(num_classes)
    mine = kept(dataset)
    again = NgramModel.from_bytes(mine.to_bytes())
    assert again.words == mine.words
    expected = mine.probabilities(dataset.test)
    np.testing.assert_allclose(again.of_texts(as_texts(dataset.test)), expected, atol=1e-12)
    texts = [*odd_texts(WORDS, 200), "w1 w2 w1 w2 w1 w2", "W1, w2... w1", "nothing known", "w3"]
    expected = again.of_texts(texts)
    assert len(np.unique(expected[:, 0])) > 100
    for some in (texts[-2:], texts[:1]):
        np.testing.assert_allclose(again.of_texts(some), expected[[texts.index(t) for t in some]])


def test_a_broken_linear_model_is_refused() -> None:
    """The file may be empty, no archive, half an archive, or an archive of other arrays."""
    model = kept(made_up(2))
    content, other = model.to_bytes(), to_archive(model.ngrams, words=np.zeros(2))
    for broken in (b"", b"PK\x03\x04", content[: len(content) // 2], other):
        with pytest.raises(ValueError, match="not an archive of n-grams"):
            NgramModel.from_bytes(broken)


@pytest.mark.full
def test_predict_gives_the_weighted_mean(harness: Harness, tmp_path: Path) -> None:
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
    (folder / "ngrams.npz").unlink()
    with pytest.raises(InputError, match=r"ngrams\.npz can't be read"):
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
