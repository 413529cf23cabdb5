"""The programs with which the benchmarks compare the harness.

`python -m tests.bench.baselines REQUEST` trains one of the five networks as the notebook does
(`Sequential` and `fit` on padded arrays) or with `torch.nn`, and prints a line of JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.data.sources import open_dataset
from harness.data.vocabulary import encode_split
from harness.system.processes import age_s

if TYPE_CHECKING:
    import keras


VOCAB_SIZE, MAXLEN, UNITS, EMBEDDING_DIM = 8000, 200, 32, 32
BATCH_SIZE, VALIDATION_SPLIT = 128, 0.2


class Padded(NamedTuple):
    """Reviews as padded arrays; n is the number of reviews."""

    tokens: np.ndarray  # [n, MAXLEN] int
    labels: np.ndarray  # [n] int, 0 or 1
    test: np.ndarray  # [n, MAXLEN] int


def main() -> None:
    """Train as the JSON object in the first command-line argument says."""
    request = json.loads(sys.argv[1])
    data = request["data"] and Path(request["data"])
    if request["way"] == "notebook":
        reviews, train = load(data, request["limit"]), by_keras
    else:
        reviews, train = load_without_keras(data, request["limit"]), by_torch
    found = train(request["architecture"], reviews, request["epochs"])
    print(json.dumps(found))  # noqa: T201


def load(keras_file: Path, limit: int) -> Padded:
    """Return the first `limit` reviews of each split, loaded and padded as in the notebook."""
    from keras.src.datasets import imdb
    from keras.utils import pad_sequences

    # Only the download of the file is replaced; the rest is Keras's code.
    imdb.get_file = lambda *_, **__: str(keras_file)
    (tokens, labels), (test, _) = imdb.load_data(num_words=VOCAB_SIZE)
    # The notebook pads all reviews, and so does this function.
    padded, padded_test = pad_sequences(tokens, maxlen=MAXLEN), pad_sequences(test, maxlen=MAXLEN)
    return Padded(padded[:limit], labels[:limit], padded_test[:limit])


def load_without_keras(data: Path | None, limit: int) -> Padded:
    """Return what `load` returns, without importing Keras.

    An import of Keras would delay a process that trains with PyTorch, and increase its memory.
    """
    dataset = open_dataset(data)
    padded = []
    for split in (dataset.train.take(limit), dataset.test.take(limit)):
        tokens, offsets = encode_split(split, VOCAB_SIZE)
        padded.append(np.zeros([len(split), MAXLEN], np.int32))
        for row, review in zip(padded[-1], np.split(tokens, offsets[1:-1]), strict=True):
            row[-len(review) :] = review[-MAXLEN:]
    return Padded(padded[0], np.array(dataset.train.labels[:limit]), padded[1])


# Training as in the notebook


def by_keras(architecture: str, reviews: Padded, epochs: int) -> dict[str, float]:
    """Train as the notebook does.

    Args:
        architecture: name of one of the five networks.
        reviews: the last fifth of the training reviews is used for validation.
        epochs: at least 2; the first epoch is not measured.

    Returns:
        `first_step_s`, seconds from the start of the process to the end of the first step; `fit_s`,
        seconds of `fit` including tracing and validation; `training_reviews_per_s` and
        `evaluation_reviews_per_s`, medians over the measured epochs.
    """
    import keras

    tokens, labels, test = reviews
    model = _network(architecture)
    first_step_s = 0.0
    times: list[float] = []  # per epoch: start, start of evaluation, end of evaluation

    class Clock(keras.callbacks.Callback):  # type: ignore[misc] # Keras ships no types
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            nonlocal first_step_s
            first_step_s = first_step_s or age_s()

        def on_epoch_begin(self, *_: object) -> None:
            times.append(time.perf_counter())

        on_test_begin = on_test_end = on_epoch_begin

    began = time.perf_counter()
    model.fit(
        tokens,
        labels,
        batch_size=BATCH_SIZE,
        validation_split=VALIDATION_SPLIT,
        epochs=epochs,
        callbacks=[Clock()],
        verbose=0,
    )
    fit_s = time.perf_counter() - began
    model.predict(test, verbose=0)
    return {"first_step_s": first_step_s, "fit_s": fit_s, **_speeds(times, len(labels))}


def _speeds(times: list[float], num_reviews: int) -> dict[str, float]:
    """Return the median speeds without the first epoch, which includes the tracing of the graphs.

    Args:
        times: three per epoch, in seconds: its start, and the start and end of its evaluation.
        num_reviews: number of reviews for training and evaluation together.
    """
    num_training = int(num_reviews * (1 - VALIDATION_SPLIT))
    begins, tests, ends = (times[each + 3 :: 3] for each in range(3))
    training_s = statistics.median(test - begin for begin, test in zip(begins, tests, strict=True))
    evaluation_s = statistics.median(end - test for test, end in zip(tests, ends, strict=True))
    return {
        "training_reviews_per_s": num_training / training_s,
        "evaluation_reviews_per_s": (num_reviews - num_training) / evaluation_s,
    }


def _network(architecture: str) -> "keras.Model":
    import keras
    from keras import layers

    recurrent: dict[str, Callable[[], list[Any]]] = {
        "rnn": lambda: [layers.SimpleRNN(UNITS)],
        "lstm": lambda: [layers.LSTM(UNITS)],
        "gru": lambda: [layers.GRU(UNITS, reset_after=False)],
        "bilstm": lambda: [layers.Bidirectional(layers.LSTM(UNITS))],
        "stacked_lstm": lambda: [layers.LSTM(UNITS, return_sequences=True), layers.LSTM(UNITS)],
    }
    model = keras.Sequential(
        [
            layers.Embedding(VOCAB_SIZE, EMBEDDING_DIM),
            layers.SpatialDropout1D(0.4),
            *recurrent[architecture](),
            layers.Dropout(0.5 if architecture == "stacked_lstm" else 0.4),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    optimizer = keras.optimizers.RMSprop(0.001)
    model.compile(loss="binary_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    return model


# The same networks in PyTorch


def _torch_network(architecture: str, device: str) -> tuple[Any, Callable[[Any], Any]]:
    """Return the layers of a network, and a function that turns a batch of tokens into logits."""
    import torch
    from torch import nn

    one_way: dict[str, Callable[..., Any]] = {"rnn": nn.RNN, "gru": nn.GRU}
    options: dict[str, Any] = {"bidirectional": architecture == "bilstm"}
    options |= {"num_layers": 2} if architecture == "stacked_lstm" else {}
    embedding = nn.Embedding(VOCAB_SIZE, EMBEDDING_DIM)
    recurrent = one_way.get(architecture, nn.LSTM)(
        EMBEDDING_DIM, UNITS, batch_first=True, **options
    )
    dense = nn.Linear(UNITS * (2 if architecture == "bilstm" else 1), 1)
    dropout = 0.5 if architecture == "stacked_lstm" else 0.4
    layers = [embedding, nn.Dropout1d(0.4), recurrent, nn.Dropout(dropout), dense]
    parts = nn.ModuleList(layers).to(device)

    def logits(batch: Any) -> Any:
        embedded, spatial, recurrent, dropout, dense = parts
        channels = spatial(embedded(batch).transpose(1, 2)).transpose(1, 2)
        last = recurrent(channels)[1]
        state = last[0] if isinstance(last, tuple) else last  # [directions or layers, batch, units]
        both = architecture == "bilstm"
        return dense(dropout(torch.cat([state[0], state[1]], 1) if both else state[-1]))[:, 0]

    return parts, logits


def by_torch(architecture: str, reviews: Padded, epochs: int) -> dict[str, float]:
    """Train a network with `torch.nn`. Arguments and results are as in `by_keras`.

    PyTorch's cells differ from the notebook's: each has a second bias, and the GRU applies its
    reset gate after the matrix product.
    """
    import torch
    from torch import nn

    tokens, labels, test = reviews
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts, logits = _torch_network(architecture, device)
    optimizer = torch.optim.RMSprop(parts.parameters(), 0.001, alpha=0.9, eps=1e-7)
    loss_of = nn.BCEWithLogitsLoss()
    x = torch.as_tensor(np.asarray(tokens), dtype=torch.long, device=device)
    y = torch.as_tensor(np.asarray(labels), dtype=torch.float32, device=device)
    num_training = int(len(labels) * (1 - VALIDATION_SPLIT))
    first_step_s = 0.0
    times: list[float] = []
    for _ in range(epochs):
        times.append(time.perf_counter())
        parts.train()
        for chosen in torch.randperm(num_training, device=device).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss = loss_of(logits(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            loss.item()  # fetch the loss of every batch, as Keras does
            first_step_s = first_step_s or age_s()
        times.append(time.perf_counter())
        parts.eval()
        with torch.no_grad():
            held_out = (each[num_training:].split(BATCH_SIZE) for each in (x, y))
            for batch, truth in zip(*held_out, strict=True):
                loss_of(logits(batch), truth).item()
        times.append(time.perf_counter())
    fit_s = times[-1] - times[0]
    with torch.no_grad():
        for batch in torch.as_tensor(test, dtype=torch.long, device=device).split(BATCH_SIZE):
            torch.sigmoid(logits(batch)).cpu()
    return {"first_step_s": first_step_s, "fit_s": fit_s, **_speeds(times, len(labels))}


if __name__ == "__main__":
    main()
