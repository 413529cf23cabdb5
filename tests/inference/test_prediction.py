"""What `harness predict` says of a text."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import DiskError
from harness.inference.predict import Prediction, read_ratios, read_vocabulary
from harness.report.baseline import NGRAMS
from harness.report.ensemble import Ensemble, Member, copied


@pytest.mark.parametrize(
    ("predicted", "probabilities", "said"),
    [
        # Of two classes always the same one's, so that lines can be put in order.
        ("negative", {"negative": 0.827, "positive": 0.173}, "negative, P(positive) = 0.173"),
        ("positive", {"negative": 0.1, "positive": 0.9}, "positive, P(positive) = 0.900"),
        ("sport", {"food": 0.1, "sport": 0.7, "travel": 0.2}, "sport, P(sport) = 0.700"),
    ],
)
def test_a_line_names_the_class_that_its_number_is_of(
    predicted: str, probabilities: dict[str, float], said: str
) -> None:
    """A bare number could be taken for the probability of the class that is predicted."""
    prediction = Prediction("a text", predicted, probabilities, num_words=2, num_unknown=1)
    assert prediction.summary == said
    assert prediction.as_json() == {
        "text": "a text",
        "class": predicted,
        "probabilities": probabilities,
        "num_words": 2,
        "num_unknown": 1,
    }


def test_a_failing_disk_does_not_ask_for_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for a new ensemble: what is there is good, and the disk gives it later."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    job = SimpleNamespace(model=SimpleNamespace(ngram_ratios=3))
    run: Any = SimpleNamespace(folder=tmp_path, path=tmp_path.joinpath, job=lambda: job)
    ngrams = Member(name=NGRAMS, weight=1.0, sha256={"ngrams.npz": "0"})
    rest: dict[str, Any] = dict.fromkeys(Ensemble.model_fields)
    ensemble = Ensemble.model_construct(**rest | {"folder": tmp_path, "members": (ngrams,)})
    for name in ("harness.inference.predict", "harness.report.ensemble"):
        monkeypatch.setattr(f"{name}.read_plain_file", fail)
    for name in ("harness.system.files", "harness.report.ensemble"):
        monkeypatch.setattr(f"{name}.open_plain_file", fail)
    for read in (
        lambda: read_vocabulary(run),
        lambda: read_ratios(run),
        ensemble.check,
        ensemble.ngrams,
        lambda: copied(tmp_path, tmp_path / "copy", {}),
    ):
        with pytest.raises(DiskError, match="can't be read: Input/output error; try again later"):
            read()
