"""`harness export`: plain TensorFlow loads the SavedModel and answers like `harness predict`."""

import json
import os
import random
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.dataset import Split
from harness.data.ngrams import NgramRatios, fit_ratios
from harness.data.vocabulary import MAX_CHARACTERS, SHIFT, encode_text
from harness.errors import InputError, RunError
from harness.tracking.run_dir import RunDirectory
from tests.conftest import JOBS, Harness
from tests.made_up_runs import write_run

READ = """
import json, sys
import tensorflow as tf

assert "harness" not in sys.modules
classify = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
result = classify(text=tf.constant(json.load(sys.stdin)))
classes = result["class"].numpy().astype(str).tolist()
print(json.dumps([result["probabilities"].numpy().tolist(), classes]))
"""
ODD = (
    *("GREAT!!", "l'été", "ÄÖÜ", "İstanbul", "a\tb\r", "c\x0bd", "e\x85f"),
    *("日本", "--", "<br/>", "2/10"),
)


def odd_texts(vocab: list[str], number: int) -> list[str]:
    """Return texts of 1 to 60 known, unknown and odd words."""
    generator = random.Random(1)  # noqa: S311 - no secret
    words = [*vocab[:300], *ODD, "unheardof"]
    lengths = [generator.randint(1, 60) for _ in range(number)]
    return ["good " + " ".join(generator.choices(words, k=length)) for length in lengths]


@pytest.fixture(scope="module")
def predicted(finished: tuple[Harness, Path]) -> list[dict[str, Any]]:
    """The answers of `harness predict` to 200 texts."""
    harness, run = finished
    vocab = (run / "vocabulary.txt").read_bytes().decode().split("\n")
    texts = ["It's Bob's film, isn't it?", "ÉTÉ - \x85 don't", *odd_texts(vocab, 198)]
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = harness.succeed("predict", run, "--json", "--jsonl", stdin=lines)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["text"] for each in answers] == texts
    return answers


@pytest.mark.full
def test_plain_tensorflow_answers_like_predict(
    finished: tuple[Harness, Path], predicted: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Without the harness, TensorFlow gives the probabilities of `predict` within 1e-6."""
    (harness, run), out = finished, tmp_path / "a folder"
    done = harness.succeed("export", run, "--out", out)
    assert f"'{out}':/models/bilstm" in done.stdout
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    read = subprocess.run(
        [sys.executable, "-P", "-c", READ, str(out / "1")],
        input=json.dumps([each["text"] for each in predicted]),
        cwd=tmp_path,
        env=plain,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    probabilities, classes = json.loads(read.stdout)
    expected = [[*each["probabilities"].values()] for each in predicted]
    assert np.abs(np.array(probabilities) - expected).max() < 1e-6
    assert np.allclose(np.sum(probabilities, axis=1), 1)
    assert classes == [each["class"] for each in predicted]


@pytest.mark.full
def test_the_example_encodes_like_predict(
    finished: tuple[Harness, Path], predicted: list[dict[str, Any]]
) -> None:
    """`encode` in jobs/own/encode.py gives the model the same input as `predict`."""
    import keras

    _, run = finished
    encode = runpy.run_path(str(JOBS / "own" / "encode.py"))["encode"]
    data = tomllib.loads((run / "job.toml").read_text())["data"]
    sizes = {name: data[name] for name in ("vocab_size", "maxlen")}
    rows = [encode(each["text"], run, **sizes) for each in predicted]
    found = keras.models.load_model(run / "model.keras").predict(np.array(rows), verbose=0)
    expected = [each["probabilities"]["positive"] for each in predicted]
    assert np.allclose(found[:, 0], expected, atol=1e-5)
    row = encode("a film", run, vocab_size=8000, maxlen=5)
    assert encode("a film", run, vocab_size=8000, maxlen=5, bucket=True) == [*row[2:], 0, 0]


def checked_encoder(vocab: list[str], texts: list[str], ratios: NgramRatios, **sizes: Any) -> Any:
    """Return a graph that encodes texts, after checking that it encodes them like the data."""
    from harness.inference.export import TextEncoder

    encoder, maxlen = TextEncoder(vocab, ratios=ratios, **sizes), sizes["maxlen"]
    tokens, at_words = (each.numpy() for each in encoder(texts))
    np.testing.assert_array_equal(TextEncoder(vocab, **sizes)(texts), tokens)
    known = {word: rank for rank, word in enumerate(vocab, 1)}
    for text, row, found in zip(texts, tokens, at_words, strict=True):
        encoded = np.array(encode_text(text, known, sizes["vocab_size"]), np.int32)
        split = Split(encoded - SHIFT, np.array([0, len(encoded)]), np.zeros(1, np.int32))
        kept, missing = min(len(encoded), maxlen), max(0, len(row) - len(encoded))
        place = slice(0, kept) if sizes["bucket"] else slice(missing, None)
        assert row[place].tolist() == encoded[-maxlen:].tolist()
        np.testing.assert_array_equal(found[place], ratios.at_words(split)[-maxlen:])
        assert np.count_nonzero(row) == kept
        assert not found[row == 0].any()
    return encoder


@pytest.mark.parametrize("bucket", [False, True])
def test_the_graph_encodes_like_the_data(bucket: bool) -> None:
    """Texts are encoded like the data: padded, or cut to the last words.

    Each word has its ratios, even if an n-gram begins before the cut; padding has zeros.
    """
    import tensorflow as tf

    vocab = ["good", "bad", "film", "été", "ÄÖÜ", "İstanbul", "c\x0bd", "e\x85f", "日本", "rare"]
    numbers = np.random.default_rng(1)
    labels = numbers.integers(0, 2, 40).astype(np.int32)
    ranks = numbers.integers(-1, 4, 400) + np.repeat(labels, 10)
    ratios, _ = fit_ratios(Split(ranks.astype(np.int32), np.arange(0, 401, 10), labels), 3, 2)
    texts, sizes = ["", " . ", *odd_texts(vocab, 200)], {"vocab_size": len(vocab) + 3, "maxlen": 12}
    encoder = checked_encoder(vocab, texts, ratios, bucket=bucket, **sizes)
    assert encoder(texts)[1].numpy()[..., 2].any()
    assert encoder.variables  # the ratios are variables, because a graph can't exceed 2 GB
    time = {True: 8, False: 12}[bucket]  # the length to which `predict` pads a short text
    assert [each.shape[:2] for each in encoder(["good"])] == [(1, time)] * 2
    assert [each.shape[0] for each in encoder(tf.constant([], tf.string))] == [0, 0]


@pytest.mark.parametrize(("vocab_size", "ranks"), [(4, [-1] * 6), (7, [1, 2] * 3)])
def test_empty_tables_are_exported(vocab_size: int, ranks: list[int]) -> None:
    """The vocabulary has no words, or no n-gram of a length is known."""
    split = Split(np.array(ranks, np.int32), np.arange(7), np.array([0, 1] * 3))
    ratios, _ = fit_ratios(split, 3, 2)
    assert [len(codes) for codes in ratios.ngrams] == [len({*ranks} - {-1}), 0, 0]
    vocab, texts = ["good", "bad", "film"], ["good film", "unheard of", "bad good film", ""]
    checked_encoder(vocab, texts, ratios, vocab_size=vocab_size, maxlen=5, bucket=False)


def test_a_bad_export_is_refused(tmp_path: Path) -> None:
    """An unfinished run and a folder with other files are refused, but no earlier export."""
    from harness.inference.export import RECORD, VERSION, check_folder, export

    (tmp_path / "export" / VERSION).mkdir(parents=True)
    (tmp_path / "export" / RECORD).touch()
    check_folder(tmp_path / "export")
    begun, thesis = tmp_path / "begun", tmp_path / "thesis"
    write_run(begun, (JOBS / "lstm.toml").read_text())
    (begun / "result.json").unlink()
    thesis.mkdir()
    (thesis / "thesis.tex").touch()
    for folder, message in (
        (begun / "export", "is unfinished and has no model yet"),
        (thesis, "contains thesis.tex, which is not part of an earlier export"),
    ):
        with pytest.raises(InputError, match=message):
            export(RunDirectory(begun), folder)
    assert [path.name for path in thesis.iterdir()] == ["thesis.tex"]


@pytest.mark.full
def test_a_full_disk_is_one_line(
    finished: tuple[Harness, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow writes the variables, and raises its own errors, not an OSError."""
    import keras
    import tensorflow as tf

    from harness.inference.export import export

    def full(*_: object, **__: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "No space\nleft on device")

    monkeypatch.setattr(type(keras.export.ExportArchive()), "write_out", full)
    with pytest.raises(RunError, match=r"No space left on device; free up space .* --out"):
        export(RunDirectory(finished[1]), tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_long_text_is_cut_like_in_predict() -> None:
    """The limit counts characters, not bytes; an empty text stays empty."""
    import tensorflow as tf

    from harness.inference.export import last_characters

    texts = ["", "w1 w2 ", "w1 " + " é" * 65_530 + " w1 w2 w5 w6"]
    assert len(texts[-1]) > MAX_CHARACTERS
    cut = [text.decode() for text in last_characters(tf.constant(texts)).numpy()]
    assert cut == [text[-MAX_CHARACTERS:] for text in texts]
