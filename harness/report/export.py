"""A comparison in files: Markdown, CSV, LaTeX, JSON and the report, complete or not at all."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from harness import __version__
from harness.errors import InputError, RunError
from harness.files.atomic_file import replaced_directory
from harness.report.baseline import Baseline
from harness.report.collect import BOOK, JobResult, LeftOut, ScoredRun
from harness.report.dataset_lookup import tested_data
from harness.report.html import Section, render
from harness.report.predictions import read_predictions
from harness.report.settings import differing
from harness.report.significance import Difference
from harness.report.summary import Part
from harness.report.text_tables import csv_table, latex_table, markdown, markdown_table
from harness.system.console import printable

# What fits the width of a page.
PAPER = ("job", "seeds", "test %", "s.d.", "95 % interval", "F1", "ROC AUC", "book %", "train s")
CSV_COLUMNS = (
    *("data", "limit", "dataset_checksum", "job", "architecture", "recurrent_parameters"),
    *("parameters", "num_seeds", "seeds", "accuracy", "deviation", "interval_low"),
    *("interval_high", "f1", "roc_auc", "log_loss", "book_accuracy", "training_s"),
    *("val_accuracy", "val_loss"),
)
MEANS = ("f1", "roc_auc", "log_loss", "training_s", "val_loss")

RECORD, REPORT = "comparison.json", "report.html"
FILES = frozenset((RECORD, REPORT, "comparison.md", "comparison.csv", "comparison.tex"))


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier comparison, which would be lost.

    Raises:
        InputError: for such a folder, or a file.
    """
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise InputError(f"--out {folder}: is not a folder; choose another")
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise InputError(f"--out {folder}: can't be read: {error.strerror}") from None
    if names and (RECORD not in names or names - FILES):
        foreign = sorted(names - FILES)[:1] or sorted(names)[:1]
        raise InputError(
            f"--out {folder}: holds {foreign[0]}, which is not part of a comparison; choose "
            "a new folder, or that of an earlier comparison"
        )


def write_comparison(
    folder: Path,
    parts: Sequence[Part],
    left_out: Sequence[LeftOut],
    *,
    data: Path | None,
    say: Callable[[str], None],
) -> Path:
    """Write the folder, replacing an earlier comparison only once the new one is complete.

    Args:
        folder: accepted by `check_folder`.
        parts: what to write.
        left_out: the runs that are in none of them.
        data: a folder to look for the reviews in first.
        say: is called with a line for each run whose predictions can't be read.

    Returns:
        The report.

    Raises:
        RunError: if the disk refuses.
    """
    sections = [_section(part, data, say) for part in parts]
    made = f"harness {__version__}, {time.strftime('%Y-%m-%d %H:%M %Z')}"
    contents = {
        "comparison.md": to_markdown(parts),
        "comparison.csv": to_csv(parts),
        "comparison.tex": to_latex(parts),
        RECORD: json.dumps(to_json(parts, left_out), indent=2, allow_nan=False) + "\n",
        REPORT: printable(render(sections, left_out, made)),
    }
    try:
        with replaced_directory(folder, check_folder) as temporary:
            for name, content in contents.items():
                (temporary / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"--out {folder}: can't be written: {error.strerror or error}; choose another"
        ) from None
    return folder / REPORT


def _section(part: Part, data: Path | None, say: Callable[[str], None]) -> Section:
    predictions, group = read_predictions(part.drawn.group, say), part.group
    dataset = tested_data(group, data) if predictions else None
    if predictions and dataset:
        test = dataset.test.take(group.limit) if group.limit else dataset.test
        if not np.array_equal(test.labels, predictions.labels):
            dataset = None  # its texts are not those of the predictions
    return Section(part, predictions, dataset)


# The formats


def to_markdown(parts: Sequence[Part]) -> str:
    """The comparison in Markdown."""
    return "\n".join(
        "\n".join([
            f"## {markdown(part.heading)}\n",
            markdown_table(part.columns, part.lines),
            *([markdown_table([*part.by_key[0]], part.by_key)] if part.by_key else []),
            *([markdown_table([*part.time_lines[0]], part.time_lines)] if part.time_lines else []),
            *_markdown_list([*part.verdicts, *(each.sentence for each in part.differences)]),
            *_markdown_list([*part.notes, *part.baseline_notes]),
        ])
        for part in parts
    )  # fmt: skip


def _markdown_list(lines: Sequence[str]) -> list[str]:
    return ["".join(f"- {markdown(line)}\n" for line in lines)] if lines else []


def to_csv(parts: Sequence[Part]) -> str:
    """The tables as CSV, unrounded; accuracies as shares from 0 to 1, times in seconds."""
    keys = dict.fromkeys(key for part in parts for key in differing(part.group.results))
    rows = [
        {"data": part.group.data, "limit": part.group.limit,
         "dataset_checksum": part.group.checksum, **figures}
        for part in parts
        for figures in (*(_result_figures(part, each) | {key: each.setting(key) for key in keys}
                          for each in part.ordered),
                        *map(_baseline_figures, part.baselines))
    ]  # fmt: skip
    return csv_table([*CSV_COLUMNS, *keys], rows)


def _result_figures(part: Part, result: JobResult) -> dict[str, Any]:
    low, high = result.interval or (None, None)
    means = {key: result.mean_of(key) for key in MEANS}
    validation = result.mean_of("val_accuracy")
    counts = {key: result.mean_of(key) for key in ("recurrent_parameters", "parameters")}
    return {
        "job": result.name,
        "architecture": result.architecture,
        **{key: None if value is None else round(value) for key, value in counts.items()},
        "num_seeds": len(result.runs),
        "seeds": " ".join(map(str, result.by_seed)),
        "accuracy": _share(result.mean),
        "deviation": _share(result.deviation),
        "interval_low": _share(low),
        "interval_high": _share(high),
        **means,
        "val_accuracy": validation,
        "book_accuracy": _share(BOOK.get(result.architecture)) if part.group.in_book else None,
    }


def _baseline_figures(baseline: Baseline) -> dict[str, Any]:
    keys = ("parameters", "f1", "roc_auc", "log_loss", "training_s")
    figures = {key: getattr(baseline, key) for key in keys}
    about = {"job": baseline.name, "architecture": baseline.kind}
    return {**about, **figures, "accuracy": _share(baseline.accuracy)}


def _share(per_cent: float | None) -> float | None:
    """An accuracy, or a difference of two, as data have it: from 0 to 1."""
    # 100 * a / 100 need not be a; nothing that was measured has twelve digits.
    return None if per_cent is None else round(per_cent / 100, 12)


def _shares(per_cent: Sequence[float] | None) -> list[float | None] | None:
    return None if per_cent is None else [*map(_share, per_cent)]


def to_latex(parts: Sequence[Part]) -> str:
    """The tables for LaTeX, a rule above the baselines."""
    tables = [
        latex_table(
            [name for name in PAPER if name in part.columns],
            part.lines,
            f"{part.heading}. Means over the seeds; 95 % intervals of Student's t.",
            rules_before={len(part.group.results)} if part.baselines else (),
        )
        for part in parts
    ]
    return "\n".join(["% \\usepackage{booktabs} goes into the preamble", *tables])


def to_json(parts: Sequence[Part], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """All figures for programs, and the runs that each comes from; accuracies from 0 to 1."""
    return {
        "format": 2,
        "parts": [
            {
                "data": part.group.data,
                "limit": part.group.limit,
                "dataset_checksum": part.group.checksum,
                "num_test": part.group.num_test,
                "rows": [
                    {**_result_figures(part, each), "runs": list(map(_run_figures, each.runs))}
                    for each in part.group.results
                ],
                "differences": [_difference_figures(each) for each in part.differences],
                "yardsticks": [*map(_yardstick_figures, part.baselines)],
                "paired_tests": [
                    asdict(each) | {"points": _shares(each.points)} for each in part.paired_tests
                ],
                "verdicts": part.verdicts,
                "seconds_to_validation_accuracy": {
                    name: {str(_share(level)): at for level, at in times.items()}
                    for name, times in part.seconds_to_accuracy.items()
                },
            }
            for part in parts
        ],
        "left_out": [
            {"folder": str(each.folder), "kind": each.kind, "why": each.why} for each in left_out
        ],
    }


def _run_figures(run: ScoredRun) -> dict[str, Any]:
    accuracy = _share(run.accuracy)
    return {"folder": str(run.folder.absolute()), "seed": run.seed, "accuracy": accuracy}


def _yardstick_figures(baseline: Baseline) -> dict[str, Any]:
    # Without the predictions, which are as many as there are reviews.
    figures = {key: value for key, value in asdict(baseline).items() if key != "predicted"}
    if validation := figures.get("validation"):
        figures["validation"] = [[strength, _share(score)] for strength, score in validation]
    return figures | {"accuracy": _share(baseline.accuracy)}


def _difference_figures(each: Difference) -> dict[str, Any]:
    return {
        "first": each.first.name,
        "second": each.second.name,
        "num_seeds": each.num_seeds,
        "mean": _share(each.mean),
        "deviation": _share(statistics.stdev(each.points)) if len(each.points) > 1 else None,
        "interval": _shares(each.interval),
        "interval_alone": _shares(each.interval_alone),
        "num_comparisons": each.num_comparisons,
        "sentence": each.sentence,
    }
