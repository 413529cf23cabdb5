"""Writes the folder of a comparison, complete or not at all: report, tables and figures."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from harness import __version__
from harness.data.dataset import Dataset
from harness.errors import InputError, RunError
from harness.files.atomic_file import atomic_directory
from harness.report.collect import DatasetGroup, LeftOut
from harness.report.dataset_lookup import tested_data
from harness.report.html import Section, render
from harness.report.predictions import Predictions, read_predictions
from harness.report.summary import Part, to_csv, to_json, to_latex, to_markdown

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
        REPORT: render(sections, left_out, made),
    }
    target = folder.resolve()  # a link stays one
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        with atomic_directory(target) as temporary:
            for name, content in contents.items():
                (temporary / name).write_text(content, encoding="utf-8")
            check_folder(target)  # something else may have been put there meanwhile
            with contextlib.suppress(FileNotFoundError):
                target.rename(old)
    except OSError as error:
        raise RunError(
            f"--out {folder}: can't be written: {error.strerror or error}; choose another"
        ) from None
    finally:
        if not target.exists() and old.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    return folder / REPORT


def _section(part: Part, data: Path | None, say: Callable[[str], None]) -> Section:
    predictions = read_predictions(part.group, say)
    dataset = None
    if predictions is not None:
        dataset = _with_these_labels(tested_data(part.group, data), part.group, predictions)
    return Section(part, predictions, dataset)


def _with_these_labels(
    dataset: Dataset | None, group: DatasetGroup, predictions: Predictions
) -> Dataset | None:
    """The dataset, or None if its labels differ from those of the predictions."""
    if dataset is None:
        return None
    test = dataset.test.take(group.limit) if group.limit else dataset.test
    return dataset if np.array_equal(test.labels, predictions.labels) else None
