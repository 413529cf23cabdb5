"""`harness export`: a trained model as a SavedModel that takes raw text.

Vocabulary and encoding are in its graph, so that plain TensorFlow and TensorFlow Serving read it.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from harness.data.dataset import CLASSES
from harness.data.vocabulary import SHIFT, SPACES, START, UNKNOWN
from harness.errors import InputError, RunError
from harness.files.atomic_file import atomic_directory, write_refusal
from harness.inference.model_file import load_model
from harness.inference.predict import read_vocabulary
from harness.layers import turn_cudnn_off
from harness.tracking.run_dir import RunDirectory

VERSION = "1"  # TensorFlow Serving looks for a folder of a number
RECORD = "harness.json"  # says that a folder is an export, and may be replaced
SPACE = "[" + "".join(f"\\x{ord(character):02x}" for character in SPACES) + "]"


class TextEncoder(tf.Module):  # type: ignore[misc]  # TensorFlow ships no types
    """Raw texts to a model's input, by TensorFlow's operations alone.

    Equal to `harness.data.vocabulary.encode_text`, cut to the last words and padded in front.
    """

    def __init__(self, vocab: Sequence[str], *, vocab_size: int, maxlen: int) -> None:
        super().__init__()
        self.maxlen = maxlen
        known = vocab[: vocab_size - SHIFT - 1]
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(known, tf.string, shape=[len(known)]),
                tf.range(SHIFT + 1, SHIFT + 1 + len(known)),
            ),
            default_value=UNKNOWN,
        )

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """`[n]` strings to `[n, maxlen] int32`."""
        # Like Python's, of ASCII alone: without an encoding it takes bytes.
        spaced = tf.strings.regex_replace(tf.strings.lower(texts), SPACE, " ")
        words = tf.strings.split(spaced, sep=" ")
        words = tf.ragged.boolean_mask(words, tf.not_equal(words, ""))
        tokens = words.with_flat_values(self.table.lookup(words.flat_values))
        start = tf.fill([tf.shape(texts)[0], 1], START)
        tokens = tf.concat([start, tokens], axis=1)[:, -self.maxlen :]
        missing = self.maxlen - tokens.row_lengths()
        padding = tf.RaggedTensor.from_row_lengths(
            tf.zeros([tf.reduce_sum(missing)], tf.int32), missing
        )
        padded = tf.concat([padding, tf.cast(tokens, tf.int32)], axis=1)
        return tf.reshape(padded.flat_values, [-1, self.maxlen])


def export(run: RunDirectory, folder: Path) -> Path:
    """Write the model of a finished run as a SavedModel, in place of an earlier one.

    Its signature `serving_default` takes `text`, `[n]` UTF-8 strings, and gives `probabilities`,
    `[n, num_classes] float32`, and `class`, `[n]` strings.

    Args:
        run: a finished run.
        folder: to hold the SavedModel in a folder of its version, as TensorFlow Serving wants it.

    Returns:
        The folder of the SavedModel itself.

    Raises:
        InputError: if the run is unfinished, or the folder holds something else.
        RunError: if the folder can't be written.
    """
    check_folder(folder)
    job, model = run.job(), load_model(run)
    turn_cudnn_off(model)  # which only a GPU could run
    classes = tf.constant(run.result().get("classes", CLASSES))
    encoder = TextEncoder(
        read_vocabulary(run), vocab_size=job.data.vocab_size, maxlen=job.data.maxlen
    )

    def classify(text: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = tf.cast(model(encoder(text), training=False), tf.float32)
        if probabilities.shape[-1] == 1:  # of the second class alone
            probabilities = tf.concat([1 - probabilities, probabilities], axis=1)
        # As `predict` does: of two classes the second one needs more than a half.
        best = tf.argmax(probabilities, axis=1)
        return {"probabilities": probabilities, "class": tf.gather(classes, best)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(encoder)
    archive.add_endpoint(
        "serve", classify, input_signature=[tf.TensorSpec([None], tf.string, "text")]
    )
    record = {"run": str(run.folder.absolute()), "classes": classes.numpy().astype(str).tolist()}
    try:
        with atomic_directory(folder) as temporary:
            archive.write_out(temporary / VERSION, verbose=False)
            (temporary / RECORD).write_text(json.dumps(record) + "\n")
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise RunError(write_refusal(folder, error)) from None
    return folder / VERSION


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier export, which would be lost.

    Raises:
        InputError: for such a folder, or a file.
    """
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise InputError(f"--out {folder}: can't be read: {error.strerror}") from None
    if names and names != {VERSION, RECORD}:
        raise InputError(
            f"--out {folder}: holds {min(names - {VERSION, RECORD}, default=VERSION)}, which is "
            "not part of an export; choose a new folder, or that of an earlier export"
        )
