"""A comparison in files, complete or not at all: Markdown, CSV, LaTeX and a page.

The page is `template.html`, filled in, and loads nothing.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from harness import __version__
from harness.errors import InputError, RunError
from harness.report.collect import UNKNOWN, LeftOut, ScoredRun
from harness.report.plots import pictures_of, styles_of
from harness.report.statistics import Predictions, read_predictions
from harness.report.summary import MAX_DRAWN, Part, to_csv, to_latex, to_markdown
from harness.report.text_tables import numeric
from harness.system.console import printable
from harness.system.files import replaced_directory
from harness.system.lenient_json import table, text
from harness.tracking.run_dir import RunDirectory, last_start

TABLE, REPORT = "comparison.csv", "report.html"
FILES = frozenset((TABLE, REPORT, "comparison.md", "comparison.tex"))


# The folder


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
    if names and (TABLE not in names or names - FILES):
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
    say: Callable[[str], None],
) -> Path:
    """Write the folder, replacing an earlier comparison only once the new one is complete.

    Args:
        folder: accepted by `check_folder`.
        parts: what to write.
        left_out: the runs that are in none of them.
        say: is called with a line for each run whose predictions can't be read.

    Returns:
        The report.

    Raises:
        RunError: if the disk refuses.
    """
    made = f"harness {__version__}, {time.strftime('%Y-%m-%d %H:%M %Z')}"
    contents = {
        "comparison.md": to_markdown(parts),
        TABLE: to_csv(parts),
        "comparison.tex": to_latex(parts),
        REPORT: printable(render(parts, left_out, made, say=say)),
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


# The page


def render(
    parts: Sequence[Part],
    left_out: Sequence[LeftOut],
    made: str,
    *,
    say: Callable[[str], None],
) -> str:
    """The whole page.

    Args:
        parts: what to show.
        left_out: the runs that are in none of them.
        made: when the page was made, and by what version.
        say: is called with a line for each run whose predictions can't be read.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = [run for part in parts for run in part.group.all_runs]
    return environment.get_template("template.html").render(
        made=made,
        sections=[_section(part, say) for part in parts],
        environments=Counter(map(_environment, runs)),
        num_runs=len(runs),
        left_out=sorted(left_out, key=lambda each: each.kind),
    )


def _section(part: Part, say: Callable[[str], None]) -> dict[str, Any]:
    drawn = part.group.best(MAX_DRAWN)
    predictions = read_predictions(drawn, say)
    return {
        "part": part,
        "numbers": numeric(part.cells),
        "lines": part.cells.to_dict("records"),
        "num_drawn": len(drawn.runs),
        "colours": {name: style["color"] for name, style in styles_of(drawn).items()},
        "differences": [*part.differences.itertuples()],
        "pictures": pictures_of(drawn, part.baselines, predictions),
        "classes": predictions.classes if predictions else (),
        "confusions": {name: mean_confusion(predictions, name) for name in predictions.by_job}
        if predictions
        else {},
    }


def mean_confusion(predictions: Predictions, name: str) -> list[list[float]]:
    """A job's confusion matrix, a row for each label, counts averaged over the seeds."""
    from sklearn.metrics import confusion_matrix

    predicted = predictions.by_job[name].argmax(axis=2)
    labels, classes = np.tile(predictions.labels, len(predicted)), range(len(predictions.classes))
    counts = confusion_matrix(labels, predicted.ravel(), labels=classes)
    mean: list[list[float]] = (counts / len(predicted)).tolist()
    return mean


def _environment(run: ScoredRun) -> tuple[tuple[str, str], ...]:
    """The machine, versions and code of a run's last start; `unknown` where not recorded."""
    record = RunDirectory(run.folder).read_json("provenance.json")
    packages = table(record, "packages")
    names = ("tensorflow", "keras", "numpy")
    commit = (text(record.get("commit")) or UNKNOWN)[:12]
    changed = " with uncommitted changes" if text(record.get("uncommitted_diff")) else ""
    devices = last_start(record).get("devices")
    if not isinstance(devices, list) or not devices:
        devices = run.result.get("devices") or [UNKNOWN]
    named = (" ".join(map(str, e.values())) if isinstance(e, dict) else str(e) for e in devices)
    return (
        ("processor", text(record.get("processor")) or UNKNOWN),
        ("devices", ", ".join(named)),
        ("driver", text(record.get("driver")) or "none"),
        ("packages", ", ".join(f"{n} {text(packages.get(n)) or UNKNOWN}" for n in names)),
        ("Python", text(record.get("python")) or UNKNOWN),
        ("system", text(record.get("system")) or UNKNOWN),
        ("code", f"{commit}{changed}"),
    )
