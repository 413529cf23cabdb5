"""A user's own texts: read as they stand, or refused in one line that says where and why."""

import os
from pathlib import Path

import pytest

from harness.data.dataset import SPLITS
from harness.data.text_dataset import open_source
from harness.data.text_files import read_texts, source_checksum
from harness.errors import InputError
from harness.texts.tables import Text
from tests.data.made_up_texts import make_rows, write_csv, write_folder

ROWS = make_rows(100)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refusal(source: Path) -> str:
    """The line with which a source is refused."""
    with pytest.raises(InputError) as refused:
        open_source(source)
    said = str(refused.value)
    assert said.startswith(f"data.source {source}: ")
    assert "\n" not in said
    return said


def test_every_form_of_a_source_gives_the_same_texts(tmp_path: Path) -> None:
    """CSV, TSV, a pair of either and folders hold the same, quotes and line ends included."""
    rows = [('He said "so, so".\nThen\tnothing; é', "neg"), ("fine", "pos")]
    wider = [("7", label, text) for text, label in rows]
    sources = [
        write_csv(tmp_path / "a.csv", rows),
        write_csv(tmp_path / "a.tsv", rows),
        write_csv(tmp_path / "b.csv", wider, ("id", " Label", "TEXT")),
        write_folder(tmp_path / "folder", rows),
    ]
    for source in sources:
        found = [(each.text, each.label) for each in read_texts(source)]
        assert sorted(found) == sorted(rows), source
    content = sources[0].read_bytes()
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + content)  # as spreadsheets save it
    assert list(read_texts(marked)) == list(read_texts(sources[0]))


def test_a_source_may_say_the_split(tmp_path: Path) -> None:
    """By a column, by the names of two tables, or by folders train and test."""
    (good, bad) = ("fine", "pos"), ("dull", "neg")
    column = [(*good, "train"), (*bad, "TEST")]
    write_csv(tmp_path / "column.csv", column, ("text", "label", "split"))
    write_csv(tmp_path / "pair/train.tsv", [good])
    write_csv(tmp_path / "pair/test.tsv", [bad])
    for split in ("train", "test"):
        write_folder(tmp_path / "folders" / split, [good, bad])
    (tmp_path / "folders" / "README").write_text("not a review")
    told = [list(read_texts(tmp_path / name)) for name in ("column.csv", "pair", "folders")]
    assert told[0] == [Text(*good, "train", "row 2"), Text(*bad, "test", "row 3")]
    assert [(t.text, t.split) for t in told[1]] == [("fine", "train"), ("dull", "test")]
    assert told[1][1].location == "test.tsv row 2"
    assert [t.split for t in told[2]] == ["train", "train", "test", "test"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["Train.csv", "TEST.csv"], ["train", "test"]),
        (["train1.tsv", "test 1.tsv", "notes.json"], ["train", "test"]),
        (["train_a.csv", "test.csv", "Validation2.csv"], ["train", "test", "validation"]),
        (["testé.csv", "tests.csv"], ["", ""]),
        (["train.csv", "test.csv", "all.tsv"], "all.tsv does not name one split, though test.csv"),
        (["train.csv", "train-test.csv"], "train-test.csv does not name one split, though train."),
        (["imdb_Train.csv", "imdb.test-2.csv"], ["train", "test"]),
        (["my-train-test.csv", "my-trains.csv", "contest.csv"], ["", "", ""]),
        (["testing.csv", "Trainset.csv"], ["train", "test"]),
    ],
)
def test_names_of_tables_say_the_split_in_any_case(
    tmp_path: Path, names: list[str], splits: list[str] | str
) -> None:
    """By a word beside no letter; one that names none, or two, is refused beside one that does."""
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
        (b"", ("is empty", "a header")),
        (b"review,sentiment\nx,1\n", ("no column text", "'review', 'sentiment'", "text_column")),
        (b"text;label\nx;1\n", ("one column, 'text;label'", "data.delimiter = ';'")),
        (b"texts,label\nx,1\n", ("no column text", "did you mean texts?")),
        (b"text,label,label\nx,1,1\n", ("2 columns label",)),
        (HEAD + b"fine,pos\n\n,neg\n", ("row 3 has no text", "take them out")),
        (HEAD + b"fine,\nx,\nx, \nx,\n", ("row 2 has no label", "row 4 has", "and 1 more")),
        (HEAD + b":-),pos\n", ("row 2 has no word in its text",)),
        (
            HEAD + b"fine,pos\ncaf\xe9,neg\n",
            ("line 1, or one soon after it, is not UTF-8", "data.encoding"),
        ),
        ("text,label\nx,1\n".encode("utf-16"), ("is not UTF-8", "data.encoding")),
        (b"\x00\x01\x02\xff" * 100, ("is not UTF-8",)),
        (HEAD + b"fi\0ne,pos\n", ("row 2", "NUL")),
        (HEAD + b"fine, really,pos\n", ("row 2", "3 fields, the header 2", "double quotes")),
        (HEAD + b"fine\n", ("row 2", "1 fields")),
        (HEAD + b'x,pos\n"fine,pos\nx,neg\n', ("row 3", "1 fields", "close them")),
        (HEAD + b"x,1\n" * 8 + b'b,"0\n' + b"d,1\n" * 30, ("row of line 10", "next 30 lines")),
        (HEAD + b'"b c,0\nd,1\nhe "said" e,0\n', ("row of line 2", "a double quote that joins")),
        (
            HEAD + b"x,pos\n" + b"a" * 50_000_000 + b",pos\n",
            ("line 3 has over 16,000,000 characters",),
        ),
        (
            b"text,label,split\nfine,pos,later\n",
            ("row 2", "split is 'later'", "validation or test"),
        ),
        (HEAD, ("holds no review",)),
        (HEAD + b"fine,1\ndull,1\n", ("one class, '1'", "two labels")),
        (HEAD + b"x,a\nx,b\nx,b\nx,c\n", ("2 labels occur once, such as 'a';",)),
        (HEAD + b"x,a\nx,b\nx,b\nx,c\nx,c\n", ("the label 'a' occurs once; a class needs",)),
        (HEAD + b"".join(b"x,%d\n" % i for i in range(1001)), ("more than 1,000 classes: '0'",)),
        (HEAD + b"x,4\nx,4\nx,3.5\nx,3.5\n", ("the label '3.5' is a decimal", "round")),
        (HEAD + b"x,1e-3\nx,a\n", ("the label '1e-3' is a decimal",)),
        (HEAD + b"pos," + b"a" * 61 + b"\n", ("no name of a class", "60 printable")),
        (HEAD + b'pos,"a\x1b[1mb"\n', ("no name of a class",)),
        (HEAD + b"fine,pos\ndull,neg\n", ("training reviews, should be at least 10",)),
    ],
)
def test_a_bad_table_is_refused_in_one_line(
    tmp_path: Path, content: bytes, said: tuple[str, ...]
) -> None:
    """The line names the file, the place in it, what is wrong, and the remedy."""
    path = tmp_path / "reviews.csv"
    path.write_bytes(content)
    line = refusal(path)
    for part in said:
        assert part in line


def test_a_path_that_is_no_source_is_refused(tmp_path: Path) -> None:
    """A typo is answered with the nearest name; other files and strange folders say what is."""
    write_csv(tmp_path / "reviews.csv", ROWS)
    assert "; did you mean reviews.csv?" in refusal(tmp_path / "review.csv")
    assert "; give a table (.csv, .tsv" in refusal(tmp_path / "films")
    (tmp_path / "reviews.xlsx").write_bytes(b"PK")
    assert "ends in '.xlsx', known are .csv, .tsv, .jsonl" in refusal(tmp_path / "reviews.xlsx")
    assert "can't be read" in refusal(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe.csv")
    assert "is no plain file" in refusal(tmp_path / "pipe.csv")
    (tmp_path / "empty").mkdir()
    assert "empty/ holds no folders" in refusal(tmp_path / "empty")


def test_a_bad_folder_is_refused(tmp_path: Path) -> None:
    """An empty class, a third one, a link out of the source, a broken file: each is named."""
    folder = write_folder(tmp_path / "reviews", ROWS)
    (folder / "unsup").mkdir()
    assert "unsup/ holds no .txt file" in refusal(folder)
    (folder / "unsup").rmdir()
    both = tmp_path / "both"  # as the folders of IMDB come
    for split in SPLITS:
        write_folder(both / split, ROWS)
    write_folder(both / "train", [("unlabelled", "unsup")])
    assert "and 'unsup' is in one of them only; add it, or move it out" in refusal(both)
    (folder / "pos" / "note.md").write_text("no review")
    open_source(folder)
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    (folder / "pos" / "link.txt").symlink_to(secret)
    assert "pos/link.txt is a link" in refusal(folder)
    (folder / "pos" / "link.txt").unlink()
    broken = folder / "neg" / "1.txt"
    for content, said in ((b"\xff", "not UTF-8"), (b"a\0", "NUL"), (b" \n", "neg/1.txt has no"),
                          (b"a" * 16_000_001, "16,000,000")):  # fmt: skip
        broken.write_bytes(content)
        assert said in refusal(folder)
    for path in (folder / "pos").iterdir():
        path.unlink()
    assert "pos/ holds no .txt file" in refusal(folder)


def test_the_checksum_is_of_all_that_is_read_and_nothing_else(tmp_path: Path) -> None:
    """A changed text, a review in another class and another ending count; a new name does not."""
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
