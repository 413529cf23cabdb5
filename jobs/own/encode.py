"""Computes, without the harness, the word indices that a run's model.keras expects for a text."""

import pathlib
import string

BETWEEN_WORDS = string.punctuation.replace("'", "") + "\t\n\r"  # an apostrophe belongs to its word
PLAIN = str.maketrans(
    string.ascii_uppercase + BETWEEN_WORDS, string.ascii_lowercase + " " * len(BETWEEN_WORDS)
)


def encode(text, run, *, vocab_size, maxlen, bucket=False):
    """Return one row of the model's input: the last `maxlen` word indices, after zeros.

    Args:
        text: the raw text, without preprocessing.
        run: the folder of the run.
        vocab_size: data.vocab_size of its job.
        maxlen: data.maxlen of its job.
        bucket: data.bucket of its job; if true, the zeros are at the end of the row.
    """
    words = pathlib.Path(run, "vocabulary.txt").read_bytes().decode().split("\n")
    ranks = {word: rank for rank, word in enumerate(words[:-1], 1)}  # the most frequent word is 1
    indices = [ranks.get(word, vocab_size) + 3 for word in text.translate(PLAIN).split(" ") if word]
    known = [1] + [index if index < vocab_size else 2 for index in indices]
    zeros = [0] * (maxlen - len(known))
    return known[-maxlen:] + zeros if bucket else zeros + known[-maxlen:]
