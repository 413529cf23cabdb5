"""Tables of texts in all supported formats."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.data.own_texts import DEFAULT_FORM, open_source, read_texts, source_checksum
from harness.errors import InputError
from harness.job.keys import DataConfig
from tests.data.made_up_texts import make_rows, write_csv

ROWS = [*make_rows(60), ('He said "so, so".\nThen\tnothing; é', "neg")]


COLUMNS = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}


def write_jsonl(path: Path) -> Path:
    lines = [json.dumps({"id": i, "text": t, "label": lb}) for i, (t, lb) in enumerate(ROWS)]
    path.write_text("\n".join(lines) + "\n\n")
    return path


def write_parquet(path: Path) -> Path:
    parquet.write_table(pa.table({"n": list(range(len(ROWS))), **COLUMNS}), path)
    return path


def write_gzip(path: Path) -> Path:
    plain = write_csv(path.with_suffix(""), ROWS)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def write_zstd(path: Path) -> Path:
    plain = write_jsonl(path.with_suffix(""))
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(plain.read_bytes())
    return path


def write_saved(folder: Path, table: pa.Table, *, num_files: int = 2) -> Path:
    """Write a table in the format of `datasets.Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{num_files:05}.arrow" for i in range(num_files)]
    size = -(-len(table) // num_files)
    for i, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table.slice(i * size, size), max_chunksize=10)
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def write_spreadsheet(path: Path) -> Path:
    """Write a CSV file with a byte order mark, a third column, and unusual column names."""
    write_csv(path, [("7", label, text) for text, label in ROWS], ("id", " Label", "TEXT"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return path


def found(source: Path, form: DataConfig = DEFAULT_FORM) -> list[tuple[str, str]]:
    return [(each.text, each.label) for each in read_texts(source, form)]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.tsv", lambda path: write_csv(path, ROWS)),
        ("spreadsheet.csv", write_spreadsheet),
        ("a.jsonl", write_jsonl),
        ("a.parquet", write_parquet),
        ("a.csv.gz", write_gzip),
        ("a.ndjson.zst", write_zstd),
        ("saved", lambda path: write_saved(path, pa.table(COLUMNS))),
    ],
)
def test_every_format_gives_the_dataset_of_the_csv(
    tmp_path: Path, name: str, write: Callable[[Path], Path]
) -> None:
    """Texts, order and the checksum of the dataset are the same."""
    (tmp_path / "other").mkdir()
    source = write(tmp_path / "other" / name)
    plain = write_csv(tmp_path / "a.csv", ROWS)
    assert found(source) == ROWS == found(plain)
    assert open_source(source).checksum == open_source(plain).checksum


def test_a_job_names_columns_delimiter_and_encoding(tmp_path: Path) -> None:
    """The checksum of a source depends on which columns the job names."""
    path = tmp_path / "a.csv"
    path.write_bytes('Nr;Review;x;Stars\r\n1;"é; ""so""";y;pos\r\n'.encode("latin-1"))
    form = DataConfig(text_column="review", label_column="Stars", delimiter=";", encoding="latin-1")
    assert found(path, form) == [('é; "so"', "pos")]
    other = form.model_copy(update={"label_column": "x"})
    assert source_checksum(path, form) != source_checksum(path, other)
    with pytest.raises(InputError, match=r"no columns named text, .* are 'Nr', 'Review', 'x'"):
        found(path, DataConfig(delimiter=";", encoding="latin-1"))


def test_a_stray_quote_must_not_join_rows(tmp_path: Path) -> None:
    """A compressed table in another encoding is checked, too."""
    form, path = DataConfig(encoding="utf-16"), tmp_path / "a.tsv.gz"
    content = 'label\ttext\n1\t"Great" film\n0\t"a\n""b"""\n1\t"" for all\n'
    path.write_bytes(gzip.compress(content.encode("utf-16")))
    assert found(path, form) == [("Great film", "1"), ('a\n"b"', "0"), (" for all", "1")]
    path.write_bytes(gzip.compress(f'{content}1\t"What a day\n0\tdull\n'.encode("utf-16")))
    with pytest.raises(InputError, match="line 6 has a double quote that joins it with"):
        found(path, form)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_rows_may_have_the_line_ends_of_any_system(tmp_path: Path, end: bytes) -> None:
    """Blank rows may precede the header."""
    content = b"\n\ntext,label\n" + b'"a, ""b""",pos\n' * 20_000
    (tmp_path / "a.csv").write_bytes(content.replace(b"\n", end))
    assert found(tmp_path / "a.csv") == [('a, "b"', "pos")] * 20_000


def test_labels_may_be_numbers_or_numbered_names(tmp_path: Path) -> None:
    """Whole floats become integers; a missing label becomes an empty string."""
    texts = pa.array(["a", "b", "c", "d"])
    for labels, expected in (
        ([1, 0, 5, None], ["1", "0", "5", ""]),
        ([1.0, 0.5, float("nan"), None], ["1", "0.5", "", ""]),
        ([True, False, None, True], ["true", "false", "", "true"]),
        (pa.array(["x", "y", "x", None]).dictionary_encode(), ["x", "y", "x", ""]),
    ):
        parquet.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "a.parquet")
        assert [label for _, label in found(tmp_path / "a.parquet")] == expected
    # The package `datasets` stores the names of the classes so.
    info = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": texts, "label": [1, -1, 0, 2]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, tmp_path / "a.parquet")
    for source in (tmp_path / "a.parquet", write_saved(tmp_path / "saved", table)):
        assert [label for _, label in found(source)] == ["pos", "", "neg", ""]
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n')
    assert found(tmp_path / "a.jsonl") == [("a", "1"), ("b", "x")]


def test_folders_names_and_columns_say_splits(tmp_path: Path) -> None:
    """The split `unsupervised` is left out."""
    saved = tmp_path / "saved"
    for split in ("train", "test", "unsupervised"):
        write_saved(saved / split, pa.table(COLUMNS))
    (saved / "dataset_dict.json").write_text("{}")
    dataset = open_source(saved)
    assert (len(dataset.train), len(dataset.test)) == (len(ROWS), len(ROWS))
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_parquet(shards / f"{name}.parquet")
    (shards / "notes.json").write_text("not read")
    dataset = open_source(shards)
    assert (len(dataset.train), len(dataset.test)) == (2 * len(ROWS), len(ROWS))
    rows = [(*row, ("train", "dev", "test")[i % 3]) for i, row in enumerate(ROWS)]
    rows.append(("no label", "-1", "unsupervised"))
    form = DataConfig(split_column="part")
    write_csv(tmp_path / "a.csv", rows, ("text", "label", "part"))
    introduction = open_source(tmp_path / "a.csv", form).introduction
    assert "21 training, 20 validation and 20 test reviews" in introduction
    with pytest.raises(InputError, match="no columns named fold, "):
        found(tmp_path / "a.csv", DataConfig(split_column="fold"))


def test_a_long_review_is_cut_to_its_end_and_counted(tmp_path: Path) -> None:
    """A run prints how many reviews were cut."""
    rows = [*ROWS, ("first " + "word " * 40_000 + "last", "pos")]
    dataset = open_source(write_csv(tmp_path / "a.csv", rows))
    assert "1 reviews cut to the last 131,072 characters" in dataset.introduction
    assert "last" in dataset.vocab
    assert "first" not in dataset.vocab


def bad_sources(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield sources that are refused, each with a part of the message."""
    lines = {
        "array.json": ('[{"text": "a", "label": 1}]\n', "line 1 is not a JSON object; write"),
        "half.jsonl": ('{"text": "a", "label": 1}\n{"text"\n', "line 2 is not JSON .* each line"),
        "lacks.jsonl": ('{"text": "b"}\n', "line 1: has no columns named label"),
        "deep.jsonl": ('{"text": ' + "[" * 100_000 + "\n", "line 1 is not JSON"),
        "half character.jsonl": ('{"text": "\\ud800 a", "label": 1}\n', "unpaired surrogate"),
        "empty.jsonl": ("", "has no rows"),
        "no.parquet": ("not one", "can't be read"),
        "no.csv.zst": ("not packed", "can't be read"),
    }
    for name, (content, said) in lines.items():
        (folder / name).write_text(content)
        yield folder / name, said
    cut = write_gzip(folder / "cut.csv.gz")
    cut.write_bytes(cut.read_bytes()[:-200])
    yield cut, "can't be read"
    for name, table, said in (
        (
            "lists",
            {"text": ["a"], "label": [[1]]},
            r"row 1: the text 'a' .* the label \[1\] should",
        ),
        ("bytes", {"text": [b"a"], "label": [1]}, "row 1: the text b'a' should be a string"),
    ):
        parquet.write_table(pa.table(table), folder / f"{name}.parquet")
        yield folder / f"{name}.parquet", said
    write_csv(folder / "mixed" / "a.csv", [("a", "1", "test")], ("text", "label", "split"))
    write_csv(folder / "mixed" / "b.csv", [("b", "0")])
    yield folder / "mixed", r"b\.csv row 2 and a\.csv row 2: only one of these reviews"
    saved = write_saved(folder / "escapes", pa.table(COLUMNS))
    for files in ("5", '[{"filename": ["a"]}]', '[{"filename": "../none.parquet"}]'):
        (saved / "state.json").write_text(f'{{"_data_files": {files}}}')
        yield saved, "state.json should name files in its folder"
    (saved / "state.json").write_text('{"_data_files": [], "_indices_data_files": [1]}')
    yield saved, r"state.json selects rows by an index; call flatten_indices\(\)"
    (folder / "splits" / "extra").mkdir(parents=True)
    (folder / "splits" / "dataset_dict.json").write_text("{}")
    yield folder / "splits", "contains the folder extra, but should"
    saved = write_saved(folder / "broken", pa.table(COLUMNS), num_files=1)
    (path,) = saved.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:300])
    yield saved, "can't be read"


def test_a_bad_table_is_refused_in_one_line(tmp_path: Path) -> None:
    """The line names the source, the rule and the remedy; the cache stays empty."""
    for source, said in bad_sources(tmp_path):
        with pytest.raises(InputError, match=said) as refused:
            open_source(source)
        assert str(refused.value).startswith(f"data.source {source}: ")
        assert len(str(refused.value)) < 400
    assert not [*(tmp_path / "cache" / "harness").glob("texts-*")]
    assert not [*(tmp_path / "cache" / "harness").glob(".*.tmp")]
