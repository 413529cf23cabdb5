"""`harness predict`: texts from arguments, files and standard input, read as they arrive."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from harness.data.sources import open_sample
from harness.errors import DiskError, InputError
from harness.inference.predict import (
    Line,
    Prediction,
    Remarks,
    read_lines,
    read_ratios,
    read_vocabulary,
)
from harness.system.files import MAX_RECORD_BYTES, read_plain_file
from harness.tracking.run_dir import RATIOS_FILE, RunDirectory
from tests.conftest import Harness, failing
from tests.made_up_runs import write_run


@pytest.mark.full
def test_predict_reads_arguments_files_and_standard_input(finished: tuple[Harness, Path]) -> None:
    """A text has the same probability from each of the three sources.

    A line of a .jsonl file or of `--jsonl` is a string or an object; each answer is one line.
    """
    harness, run = finished
    texts = ["An excellent\nmovie!", "Qwertzuiop, a bad film."]
    done = harness.succeed("predict", run, *texts, "--json")
    assert done.stderr == ""
    predictions = [json.loads(line) for line in done.stdout.splitlines()]
    assert [p["text"] for p in predictions] == texts
    assert [(p["num_words"], p["num_unknown"]) for p in predictions] == [(3, 0), (4, 1)]
    lines = f"{json.dumps(texts[0])}\n{json.dumps({'id': 7, 'text': texts[1]})}\n"
    (harness.folder / "reviews.jsonl").write_text(lines)
    from_file = harness.run("predict", run, "--file", harness.folder / "reviews.jsonl", "--json")
    assert from_file.stdout == done.stdout
    from_stdin = harness.run("predict", run, "--jsonl", stdin=lines)
    for line, text, each in zip(from_stdin.stdout.splitlines(), texts, predictions, strict=True):
        found = re.match(r"(posi|nega)tive, P\(positive\) = ([01]\.\d{3})  (.*)", line)
        assert found
        assert found[3] == text.replace("\n", " ")
        assert abs(float(found[2]) - each["probabilities"]["positive"]) < 1e-3


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        (["?!"], "", "contains no word"),
        ([], "", "no text"),
        ([], "\n \n?!", "no text"),
        (["--jsonl"], "good\n", "line 1 is not JSON"),
        (["--jsonl"], "1\n", "line 1 is not a text"),
        (["good", "--file", "x"], "", "use only one"),
        (['{"text": "good"}', "--jsonl"], "", "--jsonl: is for a file or standard input"),
        (["--file", "none.txt"], "", "none.txt"),
        (["--file", "/dev/null"], "", "--file /dev/null: contains no text; write one text per"),
        (["--file", "texts.json"], "", "texts.json: is JSON, but should have one text per line"),
    ],
)
def test_bad_input_is_refused(
    finished: tuple[Harness, Path], words: list[str], stdin: str, said: str
) -> None:
    """The command ends with exit code 2 and one line."""
    harness, run = finished
    done = harness.run_here("predict", run, *words, stdin=stdin)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.full
def test_lines_without_a_word_are_skipped_and_long_ones_cut(
    finished: tuple[Harness, Path],
) -> None:
    """Warnings count these lines; each answer has the number of its line.

    A line ends with a newline, which may follow a carriage return. Other characters at which Python
    splits lines are part of a text.
    """
    harness, run = finished
    stdin = "good film\n\n?!\n" + "word " * 30_000 + "\r\nbad\x0cfilm\x85x"
    done = harness.succeed("predict", run, "--json", stdin=stdin)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    numbers = [(each["number"], each["num_words"]) for each in answers]
    assert numbers == [(1, 2), (4, 26_215), (5, 1)]
    assert answers[-1]["text"] == "bad\x0cfilm\x85x"
    blank, cut = done.stderr.splitlines()
    assert "skipped lines without a word: 2" in blank
    assert "texts cut to their last 131,072 characters: 1" in cut


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"\xff\n", "line 3 is not UTF-8"),
        # UTF-16 without a byte-order mark is valid UTF-8, but contains NUL bytes.
        ("good film\n".encode("utf-16-le"), "line 3 contains a NUL byte"),
    ],
)
def test_lines_are_read_as_they_arrive(bad: bytes, said: str) -> None:
    """Lines are returned while the pipe is open, even if the next line is not valid text."""
    end, beginning = os.pipe()
    with os.fdopen(end, "rb") as file, os.fdopen(beginning, "wb", 0) as pipe:
        lines = read_lines(file, "a pipe", Remarks(), is_json=False)
        pipe.write(b"good\nfi")
        assert next(lines) == [Line(1, "good")]
        pipe.write(b"lm\n" + bad)
        assert next(lines) == [Line(2, "film")]
        with pytest.raises(InputError, match=said):
            next(lines)


def test_a_run_reads_its_vocabulary(finished: tuple[Harness, Path]) -> None:
    """One word of the vocabulary is a character at which Python splits lines."""
    _, run = finished
    words = read_vocabulary(RunDirectory(run))
    assert words == list(open_sample().vocab[: len(words)])
    assert len(words) == 8000 - 4
    assert "\x85" in words


@pytest.mark.parametrize(
    ("predicted", "probabilities", "said"),
    [
        # With two classes a line has the probability of label 1, so that lines can be sorted.
        ("negative", {"negative": 0.827, "positive": 0.173}, "negative, P(positive) = 0.173"),
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
    path = tmp_path / "vocabulary.txt"
    fails = failing(read_plain_file, path, errno.EIO)
    monkeypatch.setattr("harness.inference.predict.read_plain_file", fails)
    with pytest.raises(DiskError, match="can't be read: Input/output error; try again later"):
        read_vocabulary(RunDirectory(tmp_path))


def test_ratios_may_be_larger_than_any_record(tmp_path: Path) -> None:
    """The size is accepted; the error is about the checksum, which is wrong here."""
    write_run(tmp_path / "run", toml="model = { architecture = 'lstm', ngram_ratios = 2 }")
    (tmp_path / "run" / RATIOS_FILE).touch()
    os.truncate(tmp_path / "run" / RATIOS_FILE, MAX_RECORD_BYTES + 1)
    with pytest.raises(InputError, match="has changed since the training"):
        read_ratios(RunDirectory(tmp_path / "run"))
