"""The report of a comparison: `template.html`, filled in. The page loads nothing."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from harness.data.dataset import Dataset
from harness.files.lenient_json import table, text
from harness.report.collect import JobResult, LeftOut, ScoredRun
from harness.report.plots import Picture, forest, pictures_of, styles_of
from harness.report.predictions import (
    Floats,
    Predictions,
    margin_over_reviews,
    mean_confusion,
    most_disputed,
    wrong_by_all,
)
from harness.report.settings import differing, setting_cells
from harness.report.summary import COLUMNS, Part
from harness.report.text_tables import Line, numeric
from harness.tracking.record_format import last_start
from harness.tracking.run_dir import RunDirectory

NUM_REVIEWS = 10
MAX_MATRIX = 12  # classes in a confusion matrix that can be read
NUM_MISTAKES = 10  # of a job, shown in its place
VALIDATION, STANDING = "validation %", "beside the baseline"
# The columns that a narrow window shows beside the names.
FOREMOST = ("job", "test %", "s.d.", "95 % interval", "seeds", VALIDATION, STANDING)


@dataclass(frozen=True)
class Section:
    """A part of the comparison with everything else that the page shows of it."""

    part: Part
    predictions: Predictions | None
    dataset: Dataset | None  # None where the reviews' texts are not available


def render(sections: Sequence[Section], left_out: Sequence[LeftOut], made: str) -> str:
    """The whole page; `made` says when it was made and by what version."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = [each for section in sections for each in section.part.group.results]
    return environment.get_template("template.html").render(
        num_runs=sum(section.part.group.num_runs for section in sections),
        made=made,
        sections=[_section(each) for each in sections],
        environments=environments(results),
        runs=run_lines(results),
        left_out=[
            {"run": str(each.folder), "kind": each.kind, "why": each.why}
            for each in sorted(left_out, key=lambda each: each.kind)
        ],
    )


def _section(section: Section) -> dict[str, Any]:
    part, drawn, predictions = section.part, section.part.drawn, section.predictions
    columns, lines = detailed(part)
    return {
        "heading": part.heading,
        "is_sample": part.group.is_sample,
        "columns": columns,
        "lines": lines,
        "numbers": numeric(columns, lines) - {STANDING},
        "num_jobs": len(part.group.results),
        "num_drawn": len(drawn.group.results),
        "by_key": part.by_key,
        "times": drawn.time_lines,
        "colours": {name: style.colour for name, style in styles_of(drawn).items()},
        "verdicts": part.verdicts,
        "baseline_notes": part.baseline_notes,
        "notes": part.notes,
        "shown": [each.sentence for each in part.differences if each.is_shown],
        "hidden": [each.sentence for each in part.differences if not each.is_shown],
        "forest": _encoded(forest(part)),
        "differences": _difference_lines(part, predictions),
        "pictures": [_encoded(picture) for picture in pictures_of(drawn, predictions)],
        "predictions": _predictions(predictions, section.dataset) if predictions else None,
    }


def _encoded(picture: Picture | None) -> dict[str, Any] | None:
    if picture is None:
        return None
    return {**vars(picture), "base64": base64.b64encode(picture.png).decode()}


def detailed(part: Part) -> tuple[list[str], list[Line]]:
    """The table with validation accuracy, the settings that differ, and the baseline beside it."""
    keys = {
        key: key if name in COLUMNS else name  # model.recurrent is no number of parameters
        for key, name in differing(part.group.results).items()
        if key != "model.architecture"  # a column of its own
    }
    added = [VALIDATION, *keys.values(), STANDING]
    lines: list[Line] = []
    results: list[JobResult | None] = [*part.ordered, *(None for _ in part.baselines)]
    for line, result in zip(part.lines, results, strict=True):
        cells: dict[str, str] = dict.fromkeys(added, "")
        if result:
            validation = result.mean_of("val_accuracy")
            cells[VALIDATION] = "" if validation is None else f"{100 * validation:.2f}"
            cells |= setting_cells(result, keys)
            cells[STANDING] = part.standings.get(result.name, "")
        lines.append({**cells, **line})
    filled = [name for name in added if any(line[name] for line in lines)]
    columns = [*part.columns, *filled]
    return sorted(columns, key=lambda name: (*FOREMOST, name).index(name)), lines


def _difference_lines(part: Part, predictions: Predictions | None) -> list[Line]:
    lines: list[Line] = []
    for each in part.differences:
        margin = margin_over_reviews(each, predictions) if predictions else None
        lines.append({
            "pair": f"{each.first.name} − {each.second.name}",  # noqa: RUF001 - a minus
            "seeds": str(each.num_seeds),
            "points": f"{each.mean:.2f}",
            "95 %, all together": _interval(each.interval),
            "95 %, this pair alone": _interval(each.interval_alone),
            "± over other reviews": "" if margin is None else f"{margin:.2f}",
            "shown": "yes" if each.is_shown else "no",
        })  # fmt: skip
    return lines


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _predictions(predictions: Predictions, dataset: Dataset | None) -> dict[str, Any]:
    classes, labels = predictions.classes, predictions.labels
    if len(classes) == 2:  # comparable over reviews of both classes
        of = classes[1]
        means = {name: each[:, :, 1].mean(axis=0) for name, each in predictions.by_job.items()}
    else:
        of = "its class"
        means = dict(zip(predictions.by_job, predictions.of_truth, strict=True))

    def review(index: int) -> dict[str, Any]:
        return {
            "index": index,
            "truth": classes[labels[index]],
            "of": of,
            "probabilities": ", ".join(f"{name} {mean[index]:.2f}" for name, mean in means.items()),
            "words": _words(dataset, index) if dataset else [],
        }

    wrong = wrong_by_all(predictions)
    disputed = most_disputed(predictions, NUM_REVIEWS) if len(predictions.by_job) > 1 else wrong[:0]
    num_runs, num_reviews = predictions.is_correct.shape
    confusions = {name: mean_confusion(labels, each) for name, each in predictions.by_job.items()}
    return {
        "classes": classes,
        "confusions": {
            name: list(zip(classes, counts.tolist(), strict=True))
            for name, counts in (confusions if len(classes) <= MAX_MATRIX else {}).items()
        },
        "by_class": class_lines(confusions, classes) if len(classes) > 2 else [],
        "mistakes": mistake_lines(confusions, classes) if len(classes) > MAX_MATRIX else [],
        "num_runs": num_runs,
        "num_reviews": num_reviews,
        "num_wrong": len(wrong),
        "wrong": [review(index) for index in wrong[:NUM_REVIEWS].tolist()],
        "disputed": [review(index) for index in disputed.tolist()],
        "has_texts": dataset is not None,
    }


def class_lines(confusions: Mapping[str, Floats], classes: Sequence[str]) -> list[Line]:
    """Precision and recall of each class in each job, by counts that are means over the seeds."""
    lines: list[Line] = []
    for label, of in enumerate(classes):
        line = {"class": of}
        for name, counts in confusions.items():
            of_class, predicted = counts.sum(axis=1)[label], counts.sum(axis=0)[label]
            line["reviews"] = f"{of_class:,.0f}"
            for score, total in (("precision", predicted), ("recall", of_class)):
                line[f"{score}, {name}"] = f"{counts[label, label] / total:.3f}" if total else ""
        lines.append(line)
    return lines


def mistake_lines(confusions: Mapping[str, Floats], classes: Sequence[str]) -> list[Line]:
    """The most frequent mistakes of each job, where a whole matrix is too large to read."""
    lines: list[Line] = []
    for name, counts in confusions.items():
        wrong = counts - np.diag(counts.diagonal())
        for index in np.argsort(-wrong, axis=None, kind="stable")[:NUM_MISTAKES]:
            label, predicted = np.unravel_index(index, wrong.shape)
            if count := wrong[label, predicted]:
                line = {"job": name, "actual": classes[label], "predicted": classes[predicted]}
                lines.append({**line, "reviews": f"{count:,.1f}"})
    return lines


def _words(dataset: Dataset, index: int) -> list[str]:
    start, end = dataset.test.offsets[index : index + 2]
    ranks, vocab = dataset.test.tokens[start:end].tolist(), dataset.vocab
    # In a user's own texts a test review may have words that the vocabulary lacks.
    return [vocab[rank - 1] if rank <= len(vocab) else "<unknown>" for rank in ranks]


UNKNOWN = "unknown"


def environments(results: Sequence[JobResult]) -> list[Line]:
    """Each unlike machine, set of versions and code, a line for each, with how many runs it had."""
    runs = (run for result in results for run in result.runs)
    counts = Counter(tuple(_environment(run).items()) for run in runs)
    return [{"runs": str(count), **dict(known)} for known, count in counts.items()]


def _environment(run: ScoredRun) -> dict[str, str]:
    record = RunDirectory(run.folder).read_json("provenance.json")
    packages = table(record, "packages")
    names = ("tensorflow", "keras", "numpy")
    commit = (text(record.get("commit")) or UNKNOWN)[:12]
    changed = " with uncommitted changes" if text(record.get("uncommitted_diff")) else ""
    return {
        "processor": text(record.get("processor")) or UNKNOWN,
        "devices": _devices(run, record),
        "driver": text(record.get("driver")) or "none",
        "packages": ", ".join(f"{n} {text(packages.get(n)) or UNKNOWN}" for n in names),
        "Python": text(record.get("python")) or UNKNOWN,
        "system": text(record.get("system")) or UNKNOWN,
        "code": f"{commit}{changed}",
    }


def _devices(run: ScoredRun, record: dict[str, Any]) -> str:
    """Each start of a run may have had others; the last one's, with the names where known."""
    devices = last_start(record).get("devices")
    if not isinstance(devices, list) or not devices:
        devices = run.result.get("devices") or [UNKNOWN]
    named = [
        " ".join(map(str, each.values())) if isinstance(each, dict) else str(each)
        for each in devices
    ]
    return ", ".join(named)


def run_lines(results: Sequence[JobResult]) -> list[Line]:
    """Each run with its seed, score and folder."""
    return [
        {
            "run": str(run.folder),
            "job": result.name,
            "seed": str(run.seed),
            "test %": f"{run.accuracy:.2f}",
        }
        for result in results
        for run in result.runs
    ]
