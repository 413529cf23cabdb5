"""`harness predict`: texts from arguments, files and standard input, classified as they arrive."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from harness.errors import InputError
from tests.conftest import Harness


@pytest.mark.full
def test_predict_reads_arguments_files_and_standard_input(finished: tuple[Harness, Path]) -> None:
    """A text has the same probability from each of the three sources."""
    harness, run = finished
    texts = ["An excellent movie!", "Qwertzuiop, a bad film."]
    done = harness.run("predict", run, *texts, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    predictions = [json.loads(line) for line in done.stdout.splitlines()]
    assert [p["text"] for p in predictions] == texts
    assert [(p["num_words"], p["num_unknown"]) for p in predictions] == [(3, 0), (4, 1)]
    (harness.folder / "reviews.txt").write_text("\n".join(texts) + "\n")
    from_file = harness.run("predict", run, "--file", harness.folder / "reviews.txt", "--json")
    assert from_file.stdout == done.stdout
    from_stdin = harness.run("predict", run, stdin="\n".join(texts))
    for line, text, each in zip(from_stdin.stdout.splitlines(), texts, predictions, strict=True):
        found = re.match(r"(posi|nega)tive, P\(positive\) = ([01]\.\d{3})  (.*)", line)
        assert found
        assert found[3] == text
        assert abs(float(found[2]) - each["probabilities"]["positive"]) < 1e-3


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        ([""], "", "contains no word"),
        ([], "", "no text"),
        ([], "\n \n?!", "no text"),
        (["--jsonl"], "good\n", "line 1 is not JSON"),
        (["--jsonl"], "1\n", "line 1 is not a text"),
        (["--jsonl"], "[\n", "line 1 begins a JSON array; write one value in each line"),
        ([], "a" * 17_000_000, "line 1 has over 16,000,000 bytes"),
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
    """The command ends with code 2 and one line."""
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
    done = harness.run("predict", run, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    numbers = [(each["number"], each["num_words"]) for each in answers]
    assert numbers == [(1, 2), (4, 26_215), (5, 1)]
    assert answers[-1]["text"] == "bad\x0cfilm\x85x"
    blank, cut = done.stderr.splitlines()
    assert "lines without a word, which were skipped: 2" in blank
    assert "texts cut to their last 131,072 characters: 1" in cut


@pytest.mark.full
def test_json_lines_contain_texts_of_several_lines(finished: tuple[Harness, Path]) -> None:
    """A .jsonl file or `--jsonl` has a string or an object per line; each answer is one line."""
    harness, run = finished
    texts = ["good\nfilm", "bad"]
    lines = f"{json.dumps(texts[0])}\n{json.dumps({'id': 7, 'text': texts[1]})}\n"
    (harness.folder / "reviews.jsonl").write_text(lines)
    from_file = harness.run("predict", run, "--file", harness.folder / "reviews.jsonl", "--json")
    assert [json.loads(line)["text"] for line in from_file.stdout.splitlines()] == texts
    plain = harness.run("predict", run, "--jsonl", stdin=lines).stdout.splitlines()
    assert [line.split("  ")[1] for line in plain] == ["good film", "bad"]


@pytest.mark.full
def test_lines_are_classified_as_they_arrive(finished: tuple[Harness, Path]) -> None:
    """Answers come while the pipe is still open; a bad line ends the command."""
    harness, run = finished
    with subprocess.Popen(
        harness.command("predict", run),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=harness.environment, cwd=harness.folder,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for _ in range(2):
            process.stdin.write(b"good film\n" * 100)
            process.stdin.flush()
            answers = [process.stdout.readline() for _ in range(100)]
            assert len({*answers}) == 1
            assert answers[0].endswith(b"good film\n")
        process.stdin.write(b"good film\n\xff\n")
        process.stdin.close()
        assert process.stdout.read().count(b"\n") == 1
        assert b"line 202 is not UTF-8" in process.stderr.read()
    assert process.returncode == 2


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """UTF-16 without a byte-order mark is valid UTF-8, but contains NUL bytes."""
    from harness.inference.predict import Remarks, read_lines

    path = tmp_path / "reviews"
    path.write_text("good film\n", encoding="utf-16-le")
    with path.open("rb") as file, pytest.raises(InputError, match="line 1 contains a NUL byte"):
        [*read_lines(file, "reviews", Remarks(), is_json=False)]


def test_a_run_reads_its_vocabulary(finished: tuple[Harness, Path]) -> None:
    """One word of the vocabulary is a character at which Python splits lines."""
    from harness.data.sources import open_sample
    from harness.inference.predict import read_vocabulary
    from harness.tracking.run_dir import RunDirectory

    _, run = finished
    words = read_vocabulary(RunDirectory(run))
    assert words == list(open_sample().vocab[: len(words)])
    assert len(words) == 8000 - 4
    assert "\x85" in words
