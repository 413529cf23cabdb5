"""`harness export`: writes a trained model as a SavedModel that takes raw text.

The SavedModel's graph contains the vocabulary and the encoding of text, so TensorFlow and
TensorFlow Serving can load the SavedModel without this package.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from harness.compute.recurrent import turn_cudnn_off
from harness.data.input_pipeline import padded_lengths
from harness.data.ngrams import NgramRatios
from harness.data.vocabulary import MAX_CHARACTERS, SHIFT, SPACES, START, UNKNOWN
from harness.errors import RunError
from harness.inference.model_file import load_model
from harness.inference.predict import read_ratios, read_vocabulary
from harness.system.files import check_replaceable, replaced_directory, write_refusal
from harness.tracking.run_dir import RunDirectory

VERSION = "1"  # name of the SavedModel's folder; TensorFlow Serving expects a number
RECORD = "harness.json"  # `export` replaces a folder that contains this file
REMEDY = "free up space on this disk, or choose another folder with --out"
check_folder = partial(check_replaceable, known={VERSION, RECORD}, mark=RECORD, kind="export")
SPACE = "[" + "".join(f"\\x{ord(character):02x}" for character in SPACES) + "]"


class TextEncoder(tf.Module):  # type: ignore[misc]  # TensorFlow ships no types
    """Converts raw texts to a model's input with TensorFlow operations only.

    The class encodes each text as `harness.data.vocabulary.encode_text` does, and keeps the last
    `maxlen` words. A text of fewer than `maxlen` words is padded to `maxlen` words: in front, or at
    the end if `bucket` is set. With `bucket`, a batch that contains only short texts is padded to
    fewer than `maxlen` words. With `ratios` the model has a second input, the result of
    `NgramRatios.at_words`.
    """

    def __init__(
        self,
        vocab: Sequence[str],
        *,
        vocab_size: int,
        maxlen: int,
        bucket: bool = False,
        ratios: NgramRatios | None = None,
    ) -> None:
        super().__init__()
        self.maxlen, self.bucket = maxlen, bucket
        self.ngrams = [numbering(codes) for codes in ratios.ngrams] if ratios else []
        if ratios:
            self.sizes = [len(codes) for codes in ratios.ngrams]
            # The ratios are a variable, because a graph is limited to 2 GB. The last row is for
            # unknown n-grams.
            padded = np.pad(ratios.ratios, ((0, 1), (0, 0)))
            self.ratios = tf.Variable(padded, trainable=False)
        # TensorFlow refuses an empty table. No word contains a space, so " " is never looked up.
        known = vocab[: vocab_size - SHIFT - 1] or [" "]
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(known, tf.string),
                tf.range(SHIFT + 1, SHIFT + 1 + len(known)),
            ),
            default_value=UNKNOWN,
        )

    def __call__(self, texts: tf.Tensor) -> Any:
        """Encode strings, `[n]`, as the model's inputs.

        Returns:
            The word indices, `[n, time] int32`; with `ratios` a list of the word indices and the
            n-gram ratios, `[n, time, channels] float32`.
        """
        words = split_words(texts)
        tokens = words.with_flat_values(self.table.lookup(words.flat_values))
        start = tf.fill([tf.shape(texts)[0], 1], START)
        tokens = tf.cast(tf.concat([start, tokens], axis=1), tf.int32)
        if not self.ngrams:
            return self._padded(tokens)
        return [self._padded(tokens), self._padded(self._at_words(tokens))]

    def _padded(self, values: tf.RaggedTensor) -> tf.Tensor:
        """Cut and pad each row to `time` words: ragged `[n, (words), …]` to `[n, time, …]`."""
        values = values[:, -self.maxlen :]
        lengths, time = values.row_lengths(), self.maxlen
        if self.bucket:
            time = tf.maximum(tf.reduce_max(lengths), int(padded_lengths(self.maxlen)[0]))
        missing = time - lengths
        rest = values.flat_values.shape[1:]
        padding = tf.RaggedTensor.from_row_lengths(
            tf.zeros([tf.reduce_sum(missing), *rest], values.dtype), missing
        )
        padded = tf.concat([values, padding] if self.bucket else [padding, values], axis=1)
        return tf.reshape(padded.flat_values, [-1, time, *rest])

    def _at_words(self, tokens: tf.RaggedTensor) -> tf.RaggedTensor:
        """Return the log-count ratios of the n-grams that end at each word.

        The result is a ragged tensor, `[n, (words), channels] float32`.
        """
        # The number of each word; -1 for unknown words, and later for unknown n-grams.
        words = self.ngrams[0].lookup(tf.cast(tokens.flat_values - SHIFT, tf.int64))
        starts = tf.gather(tokens.row_starts(), tokens.value_rowids())
        is_first = starts == tf.range(tokens.row_splits[-1])
        numbers, before, channels = words, 0, []
        for length, (table, size) in enumerate(zip(self.ngrams, self.sizes, strict=True), 1):
            if length > 1:
                # The n-gram that is one word shorter and ends one word earlier.
                shorter = tf.concat([[-1], numbers[:-1]], axis=0)
                is_one = ~is_first & (shorter >= 0) & (words >= 0)
                numbers = table.lookup(tf.where(is_one, shorter * self.sizes[0] + words, -1))
            row = tf.where(numbers >= 0, before + numbers, self.ratios.shape[0] - 1)
            channels.append(tf.gather(self.ratios, row))
            before += size
        return tokens.with_flat_values(tf.concat(channels, axis=1))


def last_characters(texts: tf.Tensor) -> tf.Tensor:
    """Cut raw texts to their last MAX_CHARACTERS, as training and `predict` do."""
    length = tf.strings.length(texts, unit="UTF8_CHAR")
    first, kept = tf.maximum(length - MAX_CHARACTERS, 0), tf.minimum(length, MAX_CHARACTERS)
    cut = tf.strings.substr(texts, first, kept, unit="UTF8_CHAR")
    return tf.where(length > MAX_CHARACTERS, cut, texts)  # `substr` would drop invalid UTF-8


def split_words(texts: tf.Tensor) -> tf.RaggedTensor:
    """Split raw texts, `[n]` strings, into words, ragged `[n, (words)]`, as `tokenize` does."""
    # If no encoding is passed, `lower` changes only ASCII letters, as `tokenize` does.
    spaced = tf.strings.regex_replace(tf.strings.lower(texts), SPACE, " ")
    words = tf.strings.split(spaced, sep=" ")
    return tf.ragged.boolean_mask(words, tf.not_equal(words, ""))


def numbering(codes: np.ndarray) -> tf.lookup.StaticHashTable:
    """Return a table that maps each code in `codes` to the code's index, and other codes to -1."""
    first = 0
    if not len(codes):  # TensorFlow refuses an empty table; no code is -2
        codes, first = np.array([-2]), -1
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant(codes, tf.int64), tf.range(first, first + len(codes), dtype=tf.int64)
        ),
        default_value=-1,
    )


def export(run: RunDirectory, folder: Path) -> Path:
    """Write the model of a finished run as a SavedModel for raw text; replace an earlier export.

    The model's signature `serving_default` maps `text` (`[n]` UTF-8 strings) to `probabilities`
    (`[n, num_classes] float32`) and `class` (`[n]` strings).

    Args:
        run: the run.
        folder: the folder to write. The SavedModel is written to `folder/VERSION`, because
            TensorFlow Serving expects a subfolder for each version of a model.

    Returns:
        The path of the SavedModel's folder, `folder/VERSION`.

    Raises:
        InputError: if the run is unfinished, if one of the run's files is broken, or if the folder
            contains files that don't belong to an earlier export.
        RunError: if the folder can't be written.
    """
    check_folder(folder)
    data, model = run.job().data, load_model(run)
    turn_cudnn_off(model)  # the export must also run on a CPU
    classes = run.result()["classes"]
    encoder = TextEncoder(
        read_vocabulary(run),
        vocab_size=data.vocab_size,
        maxlen=data.maxlen,
        bucket=data.bucket,
        ratios=read_ratios(run),
    )

    def classify(text: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = encoder(last_characters(text))
        probabilities = tf.cast(model(inputs, training=False), tf.float32)
        if probabilities.shape[-1] == 1:  # the probability of the second class
            probabilities = tf.concat([1 - probabilities, probabilities], axis=1)
        # As in `predict`, the second of two classes is chosen if its probability is above 0.5.
        best = tf.argmax(probabilities, axis=1)
        return {"probabilities": probabilities, "class": tf.gather(tf.constant(classes), best)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(encoder)
    archive.add_endpoint(
        "serve", classify, input_signature=[tf.TensorSpec([None], tf.string, "text")]
    )
    record = {"run": str(run.folder.absolute()), "classes": classes}
    try:
        with replaced_directory(folder, check_folder) as temporary:
            archive.write_out(temporary / VERSION, verbose=False)
            (temporary / RECORD).write_text(json.dumps(record) + "\n")
    except OSError as error:
        raise RunError(write_refusal(folder, error, REMEDY)) from None
    except tf.errors.OpError as error:  # TensorFlow could not write a file
        refused = OSError(" ".join(error.message.split()))
        raise RunError(write_refusal(folder, refused, REMEDY)) from None
    return folder / VERSION
