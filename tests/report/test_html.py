"""The folder of a comparison: whole or not there, and a page that is right and loads nothing."""

import csv
import json
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import by_class
from harness.errors import InputError, RunError
from harness.report.collect import LeftOut, group_runs, scored_runs
from harness.report.html import FILES, check_folder, mean_confusion, write_comparison
from harness.report.plots import pictures_of
from harness.report.statistics import Predictions, epochs_of, read_predictions
from harness.report.summary import Part, make_parts
from tests.made_up_runs import write_run, write_scored_run
from tests.report.small_data import small_data

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser makes of the page: its tags, what they load, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _patterns() -> dict[str, list[bool]]:
    """Where each architecture is right: of 60 reviews the first 6 nowhere, the last 6 by bilstm."""
    lstm = [False] * 6 + [True] * 48 + [False] * 6
    return {"lstm": lstm, "bilstm": [False] * 6 + [True] * 54}


@pytest.fixture(autouse=True, scope="module")
def _no_other_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither this machine's data nor its cache."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("XDG_CACHE_HOME", "KERAS_HOME"):
            patched.setenv(name, str(tmp_path_factory.mktemp(name)))
        patched.delenv("HARNESS_DATA", raising=False)
        yield


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two architectures with two seeds each, and their data."""
    return make_runs(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder, for tests that only read it."""
    folder = tmp_path_factory.mktemp("written")
    left_out = [LeftOut(Path("runs/<i>"), "failed", "<b>out of memory</b> & more")]
    _, said = write(make_runs(folder), folder / "out", left_out)
    assert said == []
    return folder / "out"


@pytest.fixture
def bare_runs(tmp_path: Path) -> Path:
    """Runs without a picture to draw."""
    for seed in (1, 2):
        write_run(
            tmp_path / "runs" / str(seed), seed=seed, recurrent_parameters=None, training_s=None
        )
    return tmp_path / "runs"


def make_runs(folder: Path) -> Path:
    dataset = small_data(folder / "data")
    for architecture, right in _patterns().items():
        for seed in (1, 2):
            pattern = [*right[:-seed], False] if seed == 1 else right
            run = folder / "runs" / architecture / str(seed)
            write_scored_run(run, dataset, pattern, architecture=architecture, seed=seed)
    return folder / "runs"


def parts_of(runs: Path) -> list[Part]:
    return make_parts(group_runs(scored_runs([runs])[0])[0])


def write(runs: Path, out: Path, left_out: Sequence[LeftOut] = ()) -> tuple[str, list[str]]:
    """Write a comparison; gives back the page and what was said."""
    said: list[str] = []
    path = write_comparison(out, parts_of(runs), left_out, say=said.append)
    return path.read_text(), said


def predictions_of(runs: Path) -> Predictions:
    found = read_predictions(parts_of(runs)[0].group, print)
    assert found
    return found


# The page


def test_the_page_is_whole_and_loads_nothing(written: Path) -> None:
    """Tags are balanced, pictures stand inside with words for them, no script, no address."""
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 5
    for picture in pictures:
        assert (picture["src"] or "").startswith("data:image/png;base64,iVBOR")
        assert "lstm" in (picture["alt"] or "")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    loaded = [a[key] for _, a in page.tags for key in ("href", "src", "srcset") if a.get(key)]
    assert all((each or "").startswith(("data:image/png;", "#")) for each in loaded)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_the_main_table_says_that_it_scrolls(written: Path) -> None:
    """In a narrow window, where it is wider than that; the page itself stays as it is."""
    text = (written / "report.html").read_text()
    assert text.count('<small class="hint"> (it scrolls to the side)</small>') == 1
    assert "@media screen and (max-width: 80rem) { .hint { display: inline; } }" in text


def test_the_record_names_versions_as_far_as_they_are_known(runs: Path) -> None:
    """A package that the run's record lacks is unknown, and no other."""
    for path in runs.glob("*/*/provenance.json"):
        record = json.loads(path.read_text()) | {"packages": {"tensorflow": "2.21.0"}}
        path.write_text(json.dumps(record))
    text, _ = write(runs, runs.parent / "out")
    assert "tensorflow 2.21.0, keras unknown, numpy unknown" in Page(text).text


def test_words_from_outside_are_no_markup(written: Path) -> None:
    """A record, a run's name and an error with markup in them are shown as text."""
    text = (written / "report.html").read_text()
    for harmful in ("<script", "<i>", "<b>", "Xeon <&>"):
        assert harmful not in text
    page = Page(text)
    for shown in ("<b>out of memory</b> & more", "Xeon <&>"):
        assert shown in page.text


def test_a_quote_in_a_name_ends_no_attribute(bare_runs: Path) -> None:
    """A job's name reaches labels and pictures' descriptions, and adds no attribute of its own."""
    name = 'lstm" onerror="alert(2)'
    for path in bare_runs.glob("*/result.json"):
        content = json.loads(path.read_text()) | {"job": name, "recurrent_parameters": 8320}
        path.write_text(json.dumps(content))
    text, _ = write(bare_runs, bare_runs.parent / "out")
    page = Page(text)
    (picture,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert name in (picture["alt"] or "")
    assert name in page.text
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]


def test_a_run_without_good_predictions_is_named(runs: Path) -> None:
    """Missing, broken or unlike ones leave the scores in the table and the run out of curves."""
    np.savez(runs / "lstm" / "1" / "predictions.npz", probabilities=[0.5], labels=[1])
    (runs / "bilstm" / "1" / "predictions.npz").write_bytes(b"PK\x03\x04 cut")
    (runs / "bilstm" / "2" / "predictions.npz").unlink()
    text, said = write(runs, runs.parent / "out")
    assert [line.split(":")[0].split("/runs/")[1] for line in said] == [
        *("lstm/1", "bilstm/1", "bilstm/2")
    ]
    assert "result.json says" in said[0]
    assert "ROC curves" in text
    for run in (runs / "lstm" / "1", runs / "lstm" / "2"):
        (run / "predictions.npz").unlink(missing_ok=True)
    assert "No run has predictions" in write(runs, runs.parent / "out")[0]


# The folder


def test_the_folder_holds_every_form_of_the_same_figures(written: Path) -> None:
    """Markdown, CSV and LaTeX hold the rows; CSV unrounded."""
    out = written
    assert {path.name for path in out.iterdir()} == FILES
    with (out / "comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["job"] for row in table] == ["lstm", "bilstm"]
    assert float(table[0]["accuracy"]) == pytest.approx(48 / 60)
    assert float(table[1]["accuracy"]) == pytest.approx((53 + 54) / 2 / 60)
    assert "| lstm | 80.00 |" in (out / "comparison.md").read_text()
    assert "\nlstm & 80.00 &" in (out / "comparison.tex").read_text()


def test_an_earlier_comparison_is_replaced_and_nothing_is_left(bare_runs: Path) -> None:
    """Written again the folder is the new one, also behind a link, with no leftovers beside it."""
    runs = bare_runs
    out, link = runs.parent / "out", runs.parent / "link"
    out.mkdir()
    link.symlink_to(out)
    write(runs, link)
    (out / "report.html").write_text("old")
    check_folder(link)
    write(runs, link)
    assert "<!doctype html>" in (out / "report.html").read_text()
    assert link.is_symlink()
    assert not list(runs.parent.glob(".*"))


@pytest.mark.parametrize("names", [["notes.txt"], ["comparison.csv", "notes.txt"], ["report.html"]])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, names: list[str]) -> None:
    """What is none of a comparison's files is never replaced, nor a file of that name."""
    (tmp_path / "out").mkdir()
    check_folder(tmp_path / "out")  # empty it may be
    for name in names:
        (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=f"--out .*out: holds {names[-1]}"):
        check_folder(tmp_path / "out")
    with pytest.raises(InputError, match="is not a folder"):
        check_folder(tmp_path / "out" / names[0])


def test_a_disk_that_refuses_leaves_the_earlier_comparison(
    bare_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the new one can't take its place the old one is put back."""
    runs = bare_runs
    out = runs.parent / "out"
    write(runs, out)
    (out / "report.html").write_text("old")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(RunError, match="No space left"):
            write(runs, out)
    assert (out / "report.html").read_text() == "old"
    assert not list(runs.parent.glob(".*"))


# Figures of predictions


def test_figures_are_means_over_the_seeds() -> None:
    """Confusion matrix of two seeds, by hand."""
    labels = np.array([0, 0, 1, 1])
    perfect, reverse = by_class([0.1, 0.2, 0.8, 0.9]), by_class([0.9, 0.8, 0.2, 0.1])
    both = np.stack([perfect, reverse])
    found = Predictions(labels, {"a": both, "b": perfect[None]}, ("no", "yes"))
    assert mean_confusion(found, "a") == [[1, 1], [1, 1]]
    assert mean_confusion(found, "b") == [[2, 0], [0, 2]]


def test_epochs_are_read_as_far_as_they_are_there(runs: Path) -> None:
    """A run that stopped early leaves the later epochs to the others; a broken file counts not."""
    of_lstm = parts_of(runs)[0].group.runs["lstm"]
    (runs / "lstm" / "1" / "metrics.jsonl").write_text('{"epoch": 1, "loss": 0.9}\n')
    losses = {(1, 1): 0.9, (2, 1): 0.72, (2, 2): 0.37, (2, 3): 0.7 / 3 + 0.02}
    assert epochs_of(of_lstm)["loss"].to_dict() == pytest.approx(losses)
    (runs / "lstm" / "1" / "metrics.jsonl").write_text('{"epoch": 1, "lo')
    assert {seed for seed, _ in epochs_of(of_lstm).index} == {2}


@pytest.mark.full
def test_the_same_runs_give_the_same_pictures(runs: Path) -> None:
    """A picture depends on the runs alone, to the byte."""
    part, predictions = parts_of(runs)[0], predictions_of(runs)
    first, again = (pictures_of(part.group, (), predictions) for _ in range(2))
    assert [each.title for each in first] == [
        *("Validation accuracy", "Training loss", "Accuracy and training time"),
        *("Accuracy and size", "ROC curves"),
    ]
    assert first == again
