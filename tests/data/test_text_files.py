"""Sources of a user's texts are read unchanged, or refused in one line."""

import os
import re
from pathlib import Path

import pytest

from harness.data.dataset import SPLITS
from harness.data.own_texts import open_source, read_texts, source_checksum
from harness.errors import InputError
from tests.data.made_up_texts import make_rows, write_csv, write_folder

ROWS = make_rows(100)


def refusal(source: Path) -> str:
    """Return the line that refuses a source."""
    with pytest.raises(InputError, match=f"^data.source {re.escape(str(source))}: .*$") as refused:
        open_source(source)
    return str(refused.value)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["Train.csv", "TEST.csv"], ["train", "test"]),
        (["train1.tsv", "test 1.tsv", "notes.json"], ["train", "test"]),
        (["imdb_Train.csv", "imdb.test-2.csv", "Validation2.csv"], ["train", "test", "validation"]),
        (["train.csv", "test.csv", "all.tsv"], "all.tsv should contain the name of one split"),
        (["train.csv", "train-test.csv"], "train-test.csv should contain the name of one split"),
        (["my-train-test.csv", "testé.csv", "contest.csv"], ["", "", ""]),
        (["testing.csv", "Trainset.csv"], ["train", "test"]),
    ],
)
def test_names_of_tables_say_the_split_in_any_case(
    tmp_path: Path, names: list[str], splits: list[str] | str
) -> None:
    """If the name of one table contains a split, the names of all tables must."""
    for name in names:
        write_csv(tmp_path / name, [("fine", "pos")])
    if isinstance(splits, list):
        assert [each.split for each in read_texts(tmp_path)] == splits
    else:
        assert splits in refusal(tmp_path)


HEAD = b"text,label\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; begin it with the names of its columns"),
        (b"review,sentiment\nx,1\n", "'review', 'sentiment'; set data.text_column to the right"),
        (
            b"texts,label\nx,1\n",
            "no columns named text, but should have one; did you mean texts?; its columns",
        ),
        (b"text;label\nx;1\n", "data.delimiter = ';'"),
        (b"text\tlabel\nx\t1\n", r"data.delimiter = '\t'"),
        (b"text,label,label\nx,1,1\n", "2 columns named label, but should have one"),
        (HEAD + b"fine,pos\n\n:-),neg\n", "row 3 has no word in its text; complete or remove"),
        (HEAD + b"fine, \nx,\n", "row 2 has no label"),
        (
            HEAD + b"fine,pos\ncaf\xe9,neg\n",
            r"is not UTF-8 after 'text,label\nfine,pos\ncaf'; save the file as UTF-8, or set data.",
        ),
        (HEAD + b"fi\0ne,pos\n", "row 2 contains a NUL byte or an unpaired surrogate; save the"),
        (HEAD + b"fine, really,pos\n", "3 fields, but the header has 2; put double quotes"),
        (HEAD + b'x,pos\n"fine,pos\nx,neg\n', "line 3 has a double quote that joins"),
        (HEAD + b"x,1\n" * 8 + b'b,"0\n' + b"d,1\n" * 30, "next 30 lines; write a text with"),
        (HEAD + b'"b c,0\nd,1\nhe "said" e,0\n', "line 2 has a double quote that joins"),
        (b"text,label,split\nfine,pos,later\n", "'later', but should be train, validation or test"),
        (HEAD, "has no rows"),
        (HEAD + b"fine,1\ndull,1\n", "1 classes ('1'), but should contain 2 to 1,000; set data"),
        (HEAD + b"".join(b"x,%d\n" % i for i in range(1001)), "over 1,000 classes ('0', "),
        (HEAD + b"pos," + b"a" * 61 + b"\n", "at most 60 characters, all printable; set"),
        (HEAD + b'pos,"a\x1b[1mb"\n', "all printable"),
        (HEAD + b"fine,pos\ndull,neg\n", "train reviews, but should contain at least 10"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    """The line names the file, the location in it, the rule and the remedy."""
    path = tmp_path / "reviews.csv"
    path.write_bytes(content)
    assert said in refusal(path)


def test_a_path_that_is_no_source_is_refused(tmp_path: Path) -> None:
    """The line says what a source may be. A column must not repeat the split of a table's name."""
    (tmp_path / "reviews.xlsx").write_bytes(b"PK")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "empty").mkdir()
    write_csv(tmp_path / "twice/train.csv", [("x", "1", "test")], ("text", "label", "split"))
    for name, said in (
        ("films", "no such file or folder; name a table (.csv, .tsv"),
        ("reviews.xlsx", "should end in .csv, .tsv, .jsonl"),
        ("x" * 300, "can't be read"),
        ("pipe.csv", "pipe.csv can't be read (it is not a plain file)"),
        ("empty", "empty/ contains 0 folders"),
        ("twice", "name of the file or of its folder states the split; remove the"),
    ):
        assert said in refusal(tmp_path / name)


def test_a_bad_folder_is_refused(tmp_path: Path) -> None:
    """The line names the problem: an empty class, a class in one split only, a bad file."""
    folder = write_folder(tmp_path / "reviews", ROWS)
    (folder / "unsup").mkdir()
    assert "unsup/ contains no .txt file" in refusal(folder)
    (folder / "unsup").rmdir()
    both = tmp_path / "both"  # the layout of IMDB's folders
    for split in SPLITS:
        write_folder(both / split, ROWS)
    write_folder(both / "train", [("unlabelled", "unsup")])
    assert "only one of the two contains 'unsup'; add or remove that folder" in refusal(both)
    (folder / "pos" / "note.md").write_text("no review")
    open_source(folder)
    broken = folder / "neg" / "1.txt"
    for content, said in ((b"\xff", "not UTF-8"), (b"a\0", "NUL"), (b" \n", "neg/1.txt has no")):
        broken.write_bytes(content)
        assert said in refusal(folder)
    for path in (folder / "pos").iterdir():
        path.unlink()
    assert "pos/ contains no .txt file" in refusal(folder)


def test_the_checksum_of_a_source(tmp_path: Path) -> None:
    """The checksum depends on texts, classes and the file's suffix, but not on the file's name."""
    table = write_csv(tmp_path / "a.csv", ROWS)
    folder = write_folder(tmp_path / "folder", ROWS)
    seen = {source_checksum(table), source_checksum(folder)}
    assert source_checksum(table.rename(tmp_path / "b.csv")) in seen
    assert source_checksum(folder.rename(tmp_path / "other")) in seen
    folder = tmp_path / "other"
    (folder / "pos" / "0.txt").rename(folder / "neg" / "0.txt")
    (tmp_path / "b.tsv").write_bytes((tmp_path / "b.csv").read_bytes())
    seen |= {source_checksum(folder), source_checksum(tmp_path / "b.tsv")}
    (folder / "pos" / "2.txt").write_text("another text")
    assert len(seen | {source_checksum(folder)}) == 5
