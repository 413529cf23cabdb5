"""Raw text to classes, by the model of a finished run. Input is checked before TensorFlow."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.compute.device_errors import check_results
from harness.data.dataset import by_class, vocab_from_bytes
from harness.data.epoch_order import BatchShape, evaluation_order, time_steps
from harness.data.vocabulary import START, encode_text
from harness.errors import InputError
from harness.inference.kept_ratios import read_kept, read_ratios
from harness.inference.text_lines import Line, Remarks, checked
from harness.tracking.run_dir import RunDirectory

FIRST_TEXTS, TEXTS_AT_ONCE = 64, 1024
BY_LENGTH = 128  # texts in a batch of texts of like lengths
NO_TEXT = "no text: give one as an argument, by --file, or on standard input"


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one text."""

    text: str
    predicted: str  # the most probable class
    probabilities: Mapping[str, float]  # by class, in the order of the labels
    num_words: int
    num_unknown: int  # words that are not in the model's vocabulary

    @property
    def summary(self) -> str:
        """The class, and the probability that says how sure it is, with its name.

        Of two classes always that of label 1, so that the texts can be put in order.
        """
        names = [*self.probabilities]
        name = names[1] if len(names) == 2 else self.predicted
        return f"{self.predicted}, P({name}) = {self.probabilities[name]:.3f}"

    def as_json(self) -> dict[str, Any]:
        """What `harness predict --json` prints."""
        return {
            "text": self.text,
            "class": self.predicted,
            "probabilities": self.probabilities,
            "num_words": self.num_words,
            "num_unknown": self.num_unknown,
        }


def read_vocabulary(run: RunDirectory) -> list[str]:
    """The run's words, the most frequent first.

    Raises:
        InputError, DiskError: as `read_kept`.
    """
    return vocab_from_bytes(read_kept(run, "vocabulary.txt", "vocabulary_checksum"))


def check_texts(texts: Sequence[str]) -> list[str]:
    """Texts as they are classified, before anything slow is done; a long one is cut to its end.

    Raises:
        InputError: for no text, one that holds no word, or one that can't be encoded.
    """
    if not texts:
        raise InputError(NO_TEXT)
    remarks = Remarks()
    found = [checked(text, number, remarks) for number, text in enumerate(texts, 1)]
    if remarks.first_blank:
        number = remarks.first_blank[0]
        which = f"text {number}" if len(texts) > 1 else "the text"
        raise InputError(
            f"{which} {texts[number - 1][:40]!r} holds no word; write one, or leave it out"
        )
    return [text for text in found if text is not None]


def predict(run: RunDirectory, texts: Sequence[str]) -> list[Prediction]:
    """The class of each text, encoded as the run's training data was.

    Raises:
        InputError: for a text that `check_texts` refuses, or an unfinished run.
    """
    texts = check_texts(texts)
    return Classifier(run).classify(texts)


class Classifier:
    """The model of a finished run, ready to classify texts that hold words.

    Raises:
        InputError: if the run is unfinished, or a file of it is broken.
    """

    def __init__(self, run: RunDirectory) -> None:
        # Outside any strategy: a model in a scope can't predict fewer texts than replicas.
        import tensorflow as tf

        from harness.inference.model_file import load_model

        model = load_model(run)
        self.data = run.job().data
        self.classes = run.result()["classes"]
        self.ranks = {word: rank for rank, word in enumerate(read_vocabulary(run), 1)}
        self.ratios = read_ratios(run)
        time = None if self.data.bucket else self.data.maxlen
        inputs = [tf.TensorSpec([None, time], tf.int32)]
        if self.ratios:
            inputs.append(tf.TensorSpec([None, time, self.ratios.num_channels], tf.float32))
        # Traced once for any number of texts. Not Keras's `predict`, which builds a tf.data
        # pipeline: too slow for a handful of texts.
        self._forward = tf.function(
            lambda *given: model(list(given) if self.ratios else given[0], training=False),
            input_signature=inputs,
            autograph=False,
        )
        # Now, before texts arrive.
        self._outputs([[START]])

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """The class of each text."""
        parts = range(0, len(texts), TEXTS_AT_ONCE)
        return [each for i in parts for each in self._classify(texts[i : i + TEXTS_AT_ONCE])]

    def _classify(self, texts: Sequence[str]) -> list[Prediction]:
        data = self.data
        encoded = [encode_text(text, self.ranks, data.vocab_size) for text in texts]
        probabilities = by_class(self._outputs(encoded))
        return [
            Prediction(
                text=text,
                predicted=self.classes[int(row.argmax())],
                probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
                num_words=len(tokens) - 1,
                num_unknown=tokens.count(2),
            )
            for text, tokens, row in zip(texts, encoded, probabilities, strict=True)
        ]

    def _outputs(self, encoded: Sequence[Sequence[int]]) -> np.ndarray:
        """What the model gives for each encoded text, `[num_texts, num_outputs] float32`."""
        from harness.data.input_pipeline import Reviews, padded_ratios

        num = BY_LENGTH if self.data.bucket else len(encoded)
        shape = BatchShape(num, self.data.maxlen, self.data.bucket)
        order = evaluation_order(np.array([len(tokens) for tokens in encoded]), shape)
        offsets = np.concatenate([[0], np.cumsum([len(encoded[i]) for i in order])])
        tokens = np.concatenate([encoded[i] for i in order]).astype(np.int32)
        reviews = Reviews(tokens, offsets, np.zeros(len(order), np.int32))
        inputs = [reviews.padded(np.arange(len(order)), shape)]
        if self.ratios:
            reviews = reviews._replace(ratios=self.ratios.at_words(reviews.words()))
            inputs.append(padded_ratios(reviews, shape))
        outputs = []
        lengths = reviews.lengths(shape.maxlen)
        for step, time in enumerate(time_steps(np.arange(len(order))[None], lengths, shape)):
            chosen = slice(step * num, (step + 1) * num)
            outputs.append(self._forward(*(each[chosen, :time] for each in inputs)).numpy())
            check_results()
        ordered = np.empty_like(found := np.concatenate(outputs))
        ordered[order] = found
        return ordered


def classify_stream(
    classify: Callable[[Sequence[str]], Sequence[Prediction]], batches: Iterable[Sequence[Line]]
) -> Iterator[tuple[int, Prediction]]:
    """The number of each text and its class, as soon as they are known.

    A few texts are answered before all others, so that the first answer is not kept waiting.

    Args:
        classify: of a `Classifier`, or of an ensemble.
        batches: the texts that arrive together.
    """
    at_once = FIRST_TEXTS
    for batch in batches:
        while batch:
            part, batch = batch[:at_once], batch[at_once:]
            at_once = TEXTS_AT_ONCE
            predictions = classify([line.text for line in part])
            yield from zip((line.number for line in part), predictions, strict=True)
