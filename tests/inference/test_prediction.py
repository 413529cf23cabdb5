"""The lines of `harness predict`, and the files that it reads from a run."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import DiskError, InputError
from harness.inference.predict import Prediction, read_ratios, read_vocabulary
from harness.report.ensemble import Ensemble, EnsembleClassifier
from harness.system.files import MAX_RECORD_BYTES
from harness.tracking.run_dir import RATIOS_FILE


@pytest.mark.parametrize(
    ("predicted", "probabilities", "said"),
    [
        # With two classes a line has the probability of label 1, so that lines can be sorted.
        ("negative", {"negative": 0.827, "positive": 0.173}, "negative, P(positive) = 0.173"),
        ("positive", {"negative": 0.1, "positive": 0.9}, "positive, P(positive) = 0.900"),
        ("sport", {"food": 0.1, "sport": 0.7, "travel": 0.2}, "sport, P(sport) = 0.700"),
    ],
)
def test_a_line_names_the_class_of_its_probability(
    predicted: str, probabilities: dict[str, float], said: str
) -> None:
    """The named class need not be the predicted class."""
    prediction = Prediction("a text", predicted, probabilities, num_words=2, num_unknown=1)
    assert prediction.summary == said


def test_a_failing_disk_does_not_ask_for_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error only advises another try, because the files may be readable later."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    job = SimpleNamespace(model=SimpleNamespace(ngram_ratios=3))
    run: Any = SimpleNamespace(folder=tmp_path, path=tmp_path.joinpath, job=lambda: job)
    rest: dict[str, Any] = dict.fromkeys(Ensemble.model_fields)
    members = {"runs": (), "ngrams_weight": 1.0}
    ensemble = Ensemble.model_construct(**rest | {"folder": tmp_path} | members)
    for name in ("harness.inference.predict", "harness.report.ensemble"):
        monkeypatch.setattr(f"{name}.read_plain_file", fail)
    monkeypatch.setattr("harness.system.files.open_plain_file", fail)
    for read in (
        lambda: read_vocabulary(run),
        lambda: read_ratios(run),
        lambda: EnsembleClassifier(ensemble),
    ):
        with pytest.raises(DiskError, match="can't be read: Input/output error; try again later"):
            read()


def test_ratios_may_be_larger_than_any_record(tmp_path: Path) -> None:
    """The size is accepted; the error is about the checksum, which is wrong here."""
    (tmp_path / RATIOS_FILE).touch()
    os.truncate(tmp_path / RATIOS_FILE, MAX_RECORD_BYTES + 1)
    job = SimpleNamespace(model=SimpleNamespace(ngram_ratios=3))
    run: Any = SimpleNamespace(
        folder=tmp_path, path=tmp_path.joinpath, job=lambda: job, result=dict
    )
    with pytest.raises(InputError, match="has changed since the training"):
        read_ratios(run)
