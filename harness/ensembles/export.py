"""`harness export` of an ensemble: one SavedModel for raw text, the linear model included."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from harness.ensembles.folder import Ensemble
from harness.inference.export import (
    TextModel,
    check_folder,
    columns,
    export,
    numbering,
    split_words,
    write_saved_model,
)
from harness.report.baseline import NgramModel
from harness.tracking.run_dir import RunDirectory


class NgramTextModel(tf.Module):  # type: ignore[misc]  # TensorFlow ships no types
    """The linear model over n-grams for raw texts, by TensorFlow's operations alone.

    Equal to `NgramModel.of_texts`.
    """

    def __init__(self, kept: NgramModel) -> None:
        super().__init__()
        # A word that has no name is in no text.
        named = [index for index, word in enumerate(kept.words) if word]
        self.words = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant([kept.words[index] for index in named], tf.string),
                tf.constant(named, tf.int64),
            ),
            default_value=-1,
        )
        self.ngrams = [numbering(codes) for codes in kept.ngrams]
        self.sizes = [len(codes) for codes in kept.ngrams]
        # [num_ngrams, num_models] float64, beside the graph, which takes 2 GB at most.
        self.weights = tf.Variable(kept.weights.T, trainable=False)
        self.biases = tf.constant(kept.biases)

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """`[n]` UTF-8 strings to the probability of each class, `[n, num_classes] float64`."""
        words = split_words(texts)
        words = words.with_flat_values(self.words.lookup(words.flat_values))
        num_texts, num_ngrams = tf.shape(texts, tf.int64)[0], sum(self.sizes)
        column = tf.concat([*columns(words, self.ngrams, self.sizes)], axis=0)
        text = tf.tile(words.value_rowids(), [len(self.ngrams)])
        # An n-gram counts once in a text, however often it is there.
        held = tf.unique(tf.boolean_mask(text * num_ngrams + column, column >= 0)).y
        text, column = held // num_ngrams, held % num_ngrams
        sums = tf.math.unsorted_segment_sum(tf.gather(self.weights, column), text, num_texts)
        each = tf.sigmoid(sums + self.biases)
        if each.shape[1] == 1:  # of label 1
            return tf.concat([1 - each, each], axis=1)
        return each / tf.reduce_sum(each, axis=1, keepdims=True)


def export_model(model: RunDirectory | Ensemble, folder: Path) -> Path:
    """Write a run or an ensemble as a SavedModel, as `write_saved_model` does.

    Returns:
        The folder of the SavedModel itself.

    Raises:
        InputError: if a file of it is broken, or the folder holds something else.
        RunError: if the folder can't be written.
    """
    if isinstance(model, RunDirectory):
        return export(model, folder)
    check_folder(folder)
    model.check()
    members = [TextModel(run) for run in model.runs]
    kept = model.ngrams()
    linear = NgramTextModel(kept) if kept else None
    weights = [np.float64(weight) for weight in model.weights]

    def probabilities_of(texts: tf.Tensor) -> tf.Tensor:
        found = [tf.cast(each(texts), tf.float64) for each in members]
        found += [linear(texts)] if linear else []
        return tf.cast(tf.add_n([w * p for w, p in zip(weights, found, strict=True)]), tf.float32)

    parts = [part for each in members for part in each.parts] + ([linear] if linear else [])
    record = {"ensemble": str(model.folder.absolute()), "classes": [*model.classes]}
    return write_saved_model(folder, probabilities_of, parts, record=record)
