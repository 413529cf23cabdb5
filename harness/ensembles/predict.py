"""Raw text to classes, by an ensemble. TensorFlow is imported when its models are loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.ensembles.folder import Ensemble
from harness.errors import InputError
from harness.inference.predict import Classifier, Prediction
from harness.tracking.run_dir import RunDirectory
from harness.tracking.run_folders import MAKE_AGAIN, is_ensemble


def open_model(folder: Path) -> RunDirectory | Ensemble:
    """The run or the ensemble in a folder.

    Raises:
        InputError: if it is neither.
    """
    return Ensemble.open(folder) if is_ensemble(folder) else RunDirectory.open(folder)


def classifier_of(model: RunDirectory | Ensemble) -> "Classifier | EnsembleClassifier":
    """What classifies texts by a run or an ensemble.

    Raises:
        InputError: if the run is unfinished, or a file is broken.
    """
    return EnsembleClassifier(model) if isinstance(model, Ensemble) else Classifier(model)


class EnsembleClassifier:
    """The models of an ensemble, ready to classify texts that hold words.

    Raises:
        InputError: if a file of the ensemble is broken, or is not its own.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        ensemble.check()
        self.classes, self.weights = ensemble.classes, ensemble.weights
        self.ngrams = ensemble.ngrams()
        self.runs = [Classifier(run) for run in ensemble.runs]
        for run, classifier in zip(ensemble.runs, self.runs, strict=True):
            if tuple(classifier.classes) != self.classes:
                raise InputError(
                    f"ensemble {ensemble.folder}: {run.folder} has other classes; {MAKE_AGAIN}"
                )

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """The class of each text; unknown words are those of the first run."""
        of_runs = [classifier.classify(texts) for classifier in self.runs]
        members = [np.array([[*each.probabilities.values()] for each in one]) for one in of_runs]
        if self.ngrams:
            members.append(self.ngrams.of_texts(texts))
        return [
            replace(
                first,
                predicted=self.classes[int(row.argmax())],
                probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
            )
            for first, row in zip(of_runs[0], averaged(self.weights, members), strict=True)
        ]


def averaged(
    weights: Sequence[float], members: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """The weighted mean of the members' probabilities, `[num_reviews, num_classes]`."""
    return np.asarray(sum(w * each for w, each in zip(weights, members, strict=True)), np.float64)
