"""Writes a folder with a comparison in HTML, Markdown, CSV and LaTeX.

`template.html` is the template of the HTML page. The page loads no other file.
"""

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from harness import __version__
from harness.errors import InputError, RunError
from harness.report.baseline import find_dataset
from harness.report.collect import LeftOut, ScoredRun
from harness.report.plots import forest, pictures_of
from harness.report.statistics import (
    Predictions,
    epochs_of,
    is_pooled,
    read_predictions,
    times_to_accuracy,
)
from harness.report.summary import MAX_DRAWN, Part, to_csv, to_latex, to_markdown
from harness.system.console import printable
from harness.system.files import check_replaceable, replaced_directory
from harness.system.lenient_json import table, text
from harness.tracking.run_dir import RECORD, RunDirectory, last_start

if TYPE_CHECKING:
    import pandas

TABLE, REPORT = "comparison.csv", "report.html"
RECORDED = ("processor", "driver", "python", "system")  # keys of `provenance.json`
UNKNOWN = "unknown"
PACKAGES = ("tensorflow", "keras", "numpy")
NUM_REVIEWS, NUM_WORDS = 10, 100  # largest numbers of reviews in a list, and of words of a review
FILES = frozenset((TABLE, REPORT, "comparison.md", "comparison.tex"))
check_folder = partial(check_replaceable, known=FILES, mark=TABLE, kind="comparison")


def write_comparison(folder: Path, parts: Sequence[Part], left_out: Sequence[LeftOut]) -> Path:
    """Write a comparison; keep an earlier comparison until all files of the new one are written.

    Args:
        folder: the folder to write, which `check_folder` has accepted.
        parts: the comparison, one `Part` for each dataset.
        left_out: the runs that the comparison leaves out.

    Returns:
        The path of the HTML page.

    Raises:
        InputError: if files that don't belong to a report were put into the folder during the
            comparison.
        RunError: if the folder can't be written.
    """
    made = f"harness {__version__}, {time.strftime('%Y-%m-%d %H:%M %Z')}"
    contents = {
        "comparison.md": to_markdown(parts),
        TABLE: to_csv(parts),
        "comparison.tex": to_latex(parts),
        REPORT: printable(render(parts, left_out, made)),
    }
    try:
        with replaced_directory(folder, check_folder) as temporary:
            for name, content in contents.items():
                (temporary / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"--out {folder}: can't be written: {error.strerror or error}; choose another folder"
        ) from None
    return folder / REPORT


# The page


def render(parts: Sequence[Part], left_out: Sequence[LeftOut], made: str) -> str:
    """Return the HTML page; `made` states the harness's version and the current time."""
    import pandas

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = html_table
    # A path or a record may contain an unpaired surrogate, which a pandas table can't contain.
    runs = [
        (printable(str(run.folder)), name, str(run.seed), f"{run.accuracy:.2%}")
        for part in parts
        for name, of_job in part.group.runs.items()
        for run in of_job
    ]
    others = sorted((e.kind, printable(str(e.folder)), printable(e.why)) for e in left_out)
    return environment.get_template("template.html").render(
        made=made,
        sections=[_section(part) for part in parts],
        environments=_environments([run for part in parts for run in part.group.all_runs]),
        runs=pandas.DataFrame(runs, columns=["run", "job", "seed", "test accuracy"]),
        left_out=pandas.DataFrame(others, columns=["kind", "run", "why"]),
    )


def html_table(cells: "pandas.DataFrame", kind: str) -> str:
    """Return an HTML table of the CSS class `kind`; the first column contains row headings."""
    import pandas

    first = cells.columns[0]
    rows = cells.set_index(first).rename_axis(index=None, columns=first)
    with pandas.option_context("display.max_colwidth", None):
        return str(rows.to_html(border=0, classes=kind or None))


def _section(part: Part) -> dict[str, Any]:
    drawn, pooled = part.group.best(MAX_DRAWN), is_pooled(part.group, in_pairs=part.in_pairs)
    shown, predictions = part.differences["is_shown"], read_predictions(drawn)
    epochs = {name: epochs_of(runs) for name, runs in drawn.runs.items()}
    return {
        "part": part,
        "shown": part.differences["sentence"][shown].tolist(),
        "not_shown": part.differences["sentence"][~shown].tolist(),
        "forest": forest(part.group, part.differences) if pooled else None,
        "num_drawn": len(drawn.runs),
        "times": times_to_accuracy(epochs),
        "pictures": pictures_of(drawn, epochs, part.baselines, predictions),
        "reviews": _hard_reviews(part, predictions) if predictions else {},
    }


def _hard_reviews(part: Part, predictions: Predictions) -> dict[str, list[str]]:
    """Describe the reviews that all runs get wrong, and those on which the jobs disagree most.

    Returns:
        Two headings, each with a list of descriptions of reviews. The worst mistakes, and the
        largest disagreements, come first.
    """
    labels, vocab = predictions.labels, list[str]()
    with contextlib.suppress(InputError):  # without the dataset, the texts are left out
        dataset = find_dataset(part.group, part.data)
        test, vocab = dataset.test, [*dataset.vocab]
    # For each job the mean probability of the review's own class, [jobs, reviews].
    of_truth = np.stack(
        [each[:, range(len(labels)), labels].mean(axis=0) for each in predictions.by_job.values()]
    )
    is_right = [each.argmax(axis=2) == labels for each in predictions.by_job.values()]
    wrong = np.flatnonzero(~np.concatenate(is_right).any(axis=0))
    order = np.argsort(of_truth.mean(axis=0)[wrong], kind="stable")
    disputed = np.argsort(-of_truth.std(axis=0), kind="stable") if len(of_truth) > 1 else wrong[:0]

    def describe(index: int) -> str:
        means = zip(predictions.by_job, of_truth[:, index], strict=True)
        shown = ", ".join(f"{name} {mean:.2f}" for name, mean in means)
        line = f"review {index}, {predictions.classes[labels[index]]} (probability: {shown})"
        if not vocab:
            return line
        start, end = test.offsets[index : index + 2]
        # In a user's own texts a test review may have words that the vocabulary lacks.
        ranks = test.tokens[start:end][:NUM_WORDS].tolist()
        words = [vocab[rank - 1] if rank <= len(vocab) else "<unknown>" for rank in ranks]
        return f"{line}: {' '.join(words)}{' …' if end - start > NUM_WORDS else ''}"

    counted = f"{len(wrong):,} of {len(labels):,}"
    found = {
        f"Reviews that all runs get wrong ({counted})": wrong[order],
        "Reviews on which the jobs disagree most": disputed,
    }
    return {name: [*map(describe, each[:NUM_REVIEWS].tolist())] for name, each in found.items()}


def _environments(runs: Sequence[ScoredRun]) -> "pandas.DataFrame":
    """Count the runs for each recorded combination of machine, versions and commit."""
    import pandas

    rows = []
    for run in runs:
        record = RunDirectory(run.folder).read_json(RECORD)
        packages = table(record, "packages")
        devices = last_start(record).get("devices")
        named = [e for e in devices if isinstance(e, dict)] if isinstance(devices, list) else []
        versions = (f"{n} {text(packages.get(n)) or UNKNOWN}" for n in PACKAGES)
        changed = " with uncommitted changes" if text(record.get("uncommitted_diff")) else ""
        row = {
            **{name: text(record.get(name)) or "" for name in RECORDED},
            "devices": ", ".join(" ".join(map(str, e.values())) for e in named),
            "packages": ", ".join(versions),
            "code": (text(record.get("commit")) or UNKNOWN)[:12] + changed,
        }
        rows.append({name: printable(value) for name, value in row.items()})
    counts = pandas.DataFrame(rows).value_counts().reset_index(name="runs")
    return counts[["runs", *counts.columns.drop("runs")]].astype(str)
