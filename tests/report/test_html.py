"""The report of a comparison: its page, its pictures, its other files, and its folder."""

import csv
import html
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from matplotlib.axes import Axes

from harness.data.dataset_folder import open_folder
from harness.errors import InputError, RunError
from harness.report.collect import DatasetGroup, LeftOut, group_runs, scored_runs, with_settings
from harness.report.html import FILES, check_folder, write_comparison
from harness.report.plots import pictures_of, styles_of
from harness.report.statistics import epochs_of, times_to_accuracy
from harness.report.summary import SEVERAL_CLASSES, Part, first_lines, to_csv
from harness.training.metrics import test_scores as scores_of
from tests.made_up_runs import write_run, write_scored_run
from tests.report.small_data import small_data

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, and its text."""

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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report, for tests that only read it."""
    folder = tmp_path_factory.mktemp("written")
    left_out = [LeftOut(Path("runs/<i>"), "failed", "<b>out of memory</b> & more")]
    parts = [replace(part, data=folder / "data") for part in parts_of(make_runs(folder))]
    write_comparison(folder / "out", parts, left_out)
    return folder / "out"


def make_runs(folder: Path) -> Path:
    """Write runs of two architectures with two seeds each; return their folder."""
    dataset = small_data(folder / "data")
    num_right = {("lstm", 1): 48, ("lstm", 2): 48, ("bilstm", 1): 53, ("bilstm", 2): 54}
    for (architecture, seed), num in num_right.items():
        right = [False] * 6 + [True] * num + [False] * (54 - num)
        run = folder / "runs" / architecture / str(seed)
        write_scored_run(run, dataset, right, architecture=architecture, seed=seed)
    return folder / "runs"


def parts_of(runs: Path) -> list[Part]:
    return [*map(Part, group_runs(scored_runs([runs])[0])[0])]


def epochs_in(group: DatasetGroup) -> dict[str, pandas.DataFrame]:
    return {name: epochs_of(runs) for name, runs in group.runs.items()}


def write(runs: Path, out: Path, left_out: Sequence[LeftOut] = ()) -> str:
    """Write a report; return the page."""
    return write_comparison(out, parts_of(runs), left_out).read_text()


# The page


def test_the_page_is_valid_and_loads_nothing(written: Path) -> None:
    """Tags are balanced, pictures are embedded with alt texts, and no script or file is loaded."""
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    captions = re.findall(r"<figcaption><strong>(.*?)\.</strong>", text)
    assert captions == [
        *("Validation accuracy", "Training loss", "Accuracy and training time"),
        *("Accuracy and size", "ROC curves", "Calibration"),
        *("Confusion matrix of lstm", "Confusion matrix of bilstm"),
    ]
    assert [picture["alt"] for picture in pictures] == captions
    for picture in pictures:
        assert (picture["src"] or "").startswith("data:image/png;base64,iVBOR")
    assert "tensorflow unknown, keras unknown" in page.text
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    loaded = [a[key] for _, a in page.tags for key in ("href", "src", "srcset") if a.get(key)]
    assert all((each or "").startswith(("data:image/png;", "#")) for each in loaded)
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert text.count('<span class="hint"> (the table scrolls to the side)</span>') == 1


def test_the_page_lists_hard_reviews(written: Path) -> None:
    """The page describes mistakes of all runs, and disagreements of jobs; the worst come first."""
    text = (written / "report.html").read_text()
    assert "<h3>Reviews that all runs get wrong (6 of 60)</h3>" in text
    lines = [html.unescape(each) for each in re.findall("<li>(review .*?)</li>", text)]
    assert [int(each.split()[1].rstrip(",")) for each in lines[:6]] == [5, 4, 3, 2, 1, 0]
    dataset = open_folder(written.parent / "data")
    words = [dataset.vocab[rank - 1] for rank in dataset.test.tokens[: dataset.test.offsets[1]]]
    label = dataset.classes[dataset.test.labels[0]]
    means = "(probability: lstm 0.40, bilstm 0.40)"
    assert lines[5] == f"review 0, {label} {means}: {' '.join(words)}"
    # The jobs disagree on the reviews 54 to 58, and the seeds of the BiLSTM on review 59.
    places = [int(each.split()[1].rstrip(",")) for each in lines[6:]]
    assert places == [58, 57, 56, 55, 54, 59, 0, 1, 2, 3]
    assert "(probability: lstm 0.02, bilstm 0.98)" in lines[6]


def test_texts_from_outside_are_escaped(written: Path) -> None:
    """Markup in a record, a run's name or an error is shown as text."""
    text = (written / "report.html").read_text()
    for harmful in ("<script", "<i>", "<b>", "Xeon <&>"):
        assert harmful not in text
    page = Page(text)
    for shown in ("<b>out of memory</b> & more", "Xeon <&>"):
        assert shown in page.text


def test_runs_with_bad_predictions_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with other, broken or missing predictions has a row in the table, but no curve."""
    runs = make_runs(tmp_path)
    np.savez(runs / "lstm" / "2" / "predictions.npz", probabilities=[0.5], labels=[1])
    (runs / "bilstm" / "1" / "predictions.npz").write_bytes(b"PK\x03\x04 cut")
    (runs / "bilstm" / "2" / "predictions.npz").unlink()
    assert "ROC curves" in write(runs, tmp_path / "out")
    said = capsys.readouterr().err.splitlines()
    named = [line.split(" are left out")[0].split("/runs/")[1] for line in said]
    assert named == ["lstm/2", "bilstm/1", "bilstm/2"]
    assert "labels differ" in said[0]
    (runs / "lstm" / "1" / "predictions.npz").unlink()
    (runs / "lstm" / "2" / "predictions.npz").unlink()
    assert "ROC curves" not in write(runs, tmp_path / "out")


def test_quotes_and_halves_of_surrogate_pairs_are_escaped(tmp_path: Path) -> None:
    """Both may be in a path, or in another user's result or record.

    A quote can't end the alt text of a picture and add an attribute.
    """
    dataset = small_data(tmp_path / "data")
    job = 'a\ud800" onerror="alert(2)'
    odd = {"job": job, "data": "d\ud800", "embeddings_checksum": "1\ud800"}
    classes = ["c\ud800", "other"]  # names that the pictures show
    write_scored_run(tmp_path / "runs/1", dataset, [True] * 60, classes=classes, **odd)
    record = tmp_path / "runs/1/provenance.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"processor": "p\ud800"}))
    text = write(tmp_path / "runs", tmp_path / "out", [LeftOut(Path("f\ud800"), "k", "why")])
    assert [each for each in "adfp" if f"{each}\\ud800" not in text] == []
    tags = Page(text).tags
    shown = f"Confusion matrix of {job}".replace("\ud800", "\\ud800")
    assert shown in [attributes.get("alt") for _, attributes in tags]
    assert not [tag for tag, attributes in tags if "onerror" in attributes]


# The folder


def test_all_files_have_the_same_figures(written: Path) -> None:
    """Markdown, CSV and LaTeX contain the same rows; figures in the CSV file are not rounded."""
    out = written
    assert {path.name for path in out.iterdir()} == FILES
    with (out / "comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["job"] for row in table] == ["lstm", "bilstm"]
    assert float(table[0]["accuracy"]) == pytest.approx(48 / 60)
    assert float(table[1]["accuracy"]) == pytest.approx((53 + 54) / 2 / 60)
    assert "| lstm | 80.00 |" in (out / "comparison.md").read_text()
    assert "\nlstm & 80.00 &" in (out / "comparison.tex").read_text()


def test_an_earlier_report_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the earlier report stays, and one line says why.

    The folder may be a link, which stays. No temporary file is left.
    """
    runs, out, link = tmp_path / "runs", tmp_path / "out", tmp_path / "link"
    write_run(runs / "1", recurrent_parameters=None, training_s=None)  # nothing to draw
    out.mkdir()
    link.symlink_to(out)
    write(runs, link)
    (out / "report.html").write_text("old")
    check_folder(link)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", refuse)
        with pytest.raises(RunError, match="No space left"):
            write(runs, link)
    assert (out / "report.html").read_text() == "old"
    write(runs, link)
    assert "<!doctype html>" in (out / "report.html").read_text()
    assert link.is_symlink()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("names", [["comparison.csv", "notes.txt"], ["report.html"]])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, names: list[str]) -> None:
    """A report never replaces a folder with other files."""
    (tmp_path / "out").mkdir()
    check_folder(tmp_path / "out")  # an empty folder is fine
    for name in names:
        (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=f"--out .*out: contains {names[-1]}"):
        check_folder(tmp_path / "out")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="is a broken link"):
        check_folder(tmp_path / "link")


# The figures


def test_incomplete_epochs(tmp_path: Path) -> None:
    """A run that stopped early has fewer epochs; a broken metrics.jsonl counts as no epoch."""
    runs = make_runs(tmp_path)
    group = parts_of(runs)[0].group
    of_lstm = group.runs["lstm"]
    (runs / "lstm" / "1" / "metrics.jsonl").write_text('{"epoch": 1, "loss": 0.9}\n')
    losses = {(1, 1): 0.9, (2, 1): 0.72, (2, 2): 0.37, (2, 3): 0.7 / 3 + 0.02}
    assert epochs_of(of_lstm)["loss"].to_dict() == pytest.approx(losses)
    assert len(pictures_of(group, epochs_in(group), (), None)) == 4
    (runs / "lstm" / "1" / "metrics.jsonl").write_text('{"epoch": 1, "lo')
    assert {seed for seed, _ in epochs_of(of_lstm).index} == {2}


def write_epochs(folder: Path, accuracies: Sequence[float], epoch_s: float = 10.0) -> None:
    """Write a run whose epochs take `epoch_s` seconds, and whose validations take a second."""
    seed = int(folder.name)
    write_run(folder, seed=seed, job=folder.parent.name)
    lines: dict[str, list[dict[str, float]]] = {"metrics": [], "timings": []}
    for epoch, accuracy in enumerate(accuracies, 1):
        lines["metrics"].append({"epoch": epoch, "loss": 0.5, "val_accuracy": accuracy})
        lines["timings"].append({"epoch": epoch, "epoch_s": epoch_s, "validation_s": 1.0})
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def times_of(runs: Path) -> dict[str, dict[str, str]]:
    """Return the table of times as a dictionary: job, accuracy, time."""
    table = times_to_accuracy(epochs_in(parts_of(runs)[0].group))
    return table.set_index("job").to_dict("index") if len(table) else {}


def test_times_to_an_accuracy(tmp_path: Path) -> None:
    """A time is the mean over the seeds. All accuracies lie in the range that was reached."""
    write_epochs(tmp_path / "lstm" / "1", [0.80, 0.86, 0.85])
    write_epochs(tmp_path / "lstm" / "2", [0.84, 0.83, 0.86])
    write_epochs(tmp_path / "gru" / "1", [0.81, 0.83], 20.0)
    times = times_of(tmp_path)
    levels = ["81.0 %", "82.0 %", "83.0 %", "84.0 %", "85.0 %", "86.0 %"]
    # Seed 1 reaches 81 to 86 % in epoch 2, seed 2 reaches 84 % in epoch 1 and 86 % in epoch 3.
    expected = dict.fromkeys(levels[:4], "16.5") | {"85.0 %": "27.5", "86.0 %": "27.5"}
    assert times["lstm"] == expected
    assert "27.5" in Page(write(tmp_path, tmp_path / "out")).text
    assert times["gru"] == dict(
        zip(levels, ["21.0", "42.0", "42.0", "never", "never", "never"], strict=True)
    )


def test_unknown_times_are_left_out(tmp_path: Path) -> None:
    """Without the time of an epoch, the times of this epoch and of all later ones are unknown."""
    write_epochs(tmp_path / "lstm" / "1", [0.80, 0.90])
    (tmp_path / "lstm" / "1" / "timings.jsonl").write_text('{"epoch": 2, "epoch_s": 3}\n')
    assert times_of(tmp_path) == {}
    write_run(tmp_path / "gru" / "1", job="gru")
    assert times_of(tmp_path) == {}


def test_bars_are_the_intervals_of_the_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plots show accuracy over training time and size. A marker at zero fits on the axis."""
    for seed, accuracy in enumerate((0.86, 0.97, 0.98), 1):  # the interval is cut at 100 %
        write_run(tmp_path / str(seed), seed=seed, accuracy=accuracy)
    (part,) = parts_of(tmp_path)
    drawn, plots = [], []
    errorbar = Axes.errorbar

    def record(axes: Axes, x: float, y: float, bars: Any, **style: Any) -> object:
        ((below,), (above,)) = bars
        drawn.append((x, y - below, y + above))
        plots.append(axes)
        return errorbar(axes, x, y, bars, **style)

    monkeypatch.setattr(Axes, "errorbar", record)
    pictures_of(part.group, epochs_in(part.group), (), None)
    ends = part.group.jobs.loc["lstm", ["interval_low", "interval_high"]]
    assert drawn == [(at, *map(pytest.approx, 100 * ends)) for at in (10.0, 8320)]
    assert all(axes.get_xlim()[0] <= -0.04 * axes.get_xlim()[1] for axes in plots)


def test_the_report_draws_every_class(tmp_path: Path) -> None:
    """With three classes, the report contains a confusion matrix per job, and mean ROC curves.

    Matplotlib reads a dollar as mathematics, and hides labels that begin with an underscore.
    """
    labels, classes = np.arange(120) % 3, ("one", "<b>two</b>", "$three$")
    for job, seed in itertools.product(("$^a_$", "_b"), (1, 2)):
        found = np.random.default_rng(seed).dirichlet([1, 1, 1], len(labels))
        folder = tmp_path / "runs" / job / str(seed)
        scores = scores_of(labels, found) | {"classes": classes}
        write_run(folder, job=job, seed=seed, num_test=len(labels), **scores)
        np.savez(folder / "predictions.npz", labels=labels, probabilities=found)
    page = Page(write(tmp_path / "runs", tmp_path / "out"))
    assert page.open == []
    assert page.text.count("Confusion matrix of") == 2
    assert "each against the rest" in page.text
    assert SEVERAL_CLASSES in page.text
    assert "ROC curves" in page.text


# More jobs than a picture can show


NUM_JOBS = 20


@pytest.fixture(scope="module")
def many_jobs(tmp_path_factory: pytest.TempPathFactory) -> DatasetGroup:
    """Twenty jobs with two seeds each; more units give a higher accuracy."""
    folder = tmp_path_factory.mktemp("many")
    dataset = small_data(folder / "data", 200)
    generator = np.random.default_rng(1)
    for job in range(NUM_JOBS):
        for seed in (1, 2):
            right = (generator.random(200) < 0.55 + 0.02 * job).tolist()
            run = folder / f"runs/lstm/{job}-{seed}"
            toml = f"[model]\nunits = {job + 1}\npooling = '{'last' if job % 2 else 'max'}'\n"
            write_scored_run(run, dataset, right, toml=toml, seed=seed, val_accuracy=0.5)
    groups, _ = group_runs(scored_runs([folder / "runs"])[0])
    return groups[0]


@pytest.mark.full
def test_the_best_are_drawn_and_all_are_listed(many_jobs: DatasetGroup, tmp_path: Path) -> None:
    """Twelve jobs are drawn in different styles; the table and one plot have a row per job."""
    part = Part(many_jobs)
    drawn = many_jobs.best(12)
    styles = styles_of(drawn)
    assert len({(each["color"], str(each["linestyle"])) for each in styles.values()}) == 12
    means = part.cells["test %"].astype(float).tolist()
    assert means == sorted(means, reverse=True)
    assert sorted(drawn.jobs["accuracy"]) == sorted(many_jobs.jobs["accuracy"])[-12:]
    page = write_comparison(tmp_path / "out", [part], []).read_text()
    assert "This section shows the best 12 of 20 jobs" in page
    assert page.count("<img ") == 1 + 6 + 12
    assert 'alt="Distance from the best job"' in page


def test_runs_with_a_setting_in_pairs(many_jobs: DatasetGroup) -> None:
    """`--pairs` compares all pairs of many jobs; `--where` selects runs by their settings."""
    part = Part(many_jobs, in_pairs=True)
    assert "paired over seeds" in part.notes[0]
    runs = many_jobs.all_runs
    found = with_settings(runs, ["model.pooling=last", "model.units=2.0"])
    assert [(run.settings["model.units"], run.seed) for run in found] == [(2, 1), (2, 2)]
    assert len(with_settings(runs, ["model.recurrent=true"])) == len(runs)
    assert {run.seed for run in with_settings(runs, ["train.seed=2"])} == {2}
    for where, said in (
        ("model.unit=2", "did you mean model.units"),
        ("model.units", "such as"),
        ("model.units=99", "no run has this setting"),
    ):
        with pytest.raises(InputError, match=f"--where {where}: .*{said}"):
            with_settings(runs, [where])


def test_the_csv_has_the_settings_that_differ(many_jobs: DatasetGroup) -> None:
    """A column is named `table.key`."""
    rows = list(csv.DictReader(to_csv([Part(many_jobs)]).splitlines()))
    assert [name for name in rows[0] if "." in name] == ["model.units", "model.pooling"]
    assert {row["model.units"] for row in rows} == {str(n) for n in range(1, NUM_JOBS + 1)}
    assert {(row["val_accuracy"], row["num_seeds"]) for row in rows} == {("0.5", "2")}


def test_a_terminal_shows_the_first_lines_and_counts_the_rest() -> None:
    """The report contains all lines."""
    lines = [str(n) for n in range(13)]
    assert first_lines(lines[:10], 10) == lines[:10]
    assert first_lines(lines, 10) == [*lines[:10], "and 3 more (--out writes all)"]
