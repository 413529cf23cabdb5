"""A job: what to train, never where. Read from TOML, checked before TensorFlow is imported."""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.architectures import BUILDERS
from harness.errors import InputError

if TYPE_CHECKING:
    Architecture = str
else:
    Architecture = Literal[tuple(BUILDERS)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

MAX_JOB_BYTES = 1_000_000


class Table(BaseModel):
    """A table of a job file: no key beside the known ones, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelTable(Table):
    """`[model]`: the network."""

    architecture: Architecture
    units: int = Field(32, ge=1, le=4096, description="units of each recurrent layer")
    embedding_dim: int = Field(32, ge=1, le=4096, description="numbers a word is embedded in")
    spatial_dropout: Share = Field(0.4, description="share of embedding channels dropped")
    dropout: Share = Field(0.4, description="share of the last recurrent outputs dropped")
    reset_after: bool = Field(False, description="GRU alone: reset gate after the product")
    second_units: int = Field(0, ge=0, le=4096, description="stacked alone, 0 = as the first")
    pooling: Literal["last", "max", "mean"] = Field("last", description="of outputs over time")


class DataTable(Table):
    """`[data]`: which reviews, and how much of each."""

    source: str = Field(
        "",
        max_length=4000,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="own texts, a CSV or TSV file or a folder, see harness.texts; empty = IMDB",
    )
    # 88,584 words and the three indices that Keras keeps free.
    vocab_size: int = Field(8000, ge=4, le=88_587, description="indices, the rarer words are 2")
    maxlen: int = Field(200, ge=1, le=5000, description="last tokens kept of each review")
    validation_split: Share = Field(0.2, description="last share of the training reviews")
    limit: int = Field(0, ge=0, le=25_000, description="first reviews of each split, 0 = all")
    test: bool = Field(True, description="score the test set at the end; else validation alone")


class TrainTable(Table):
    """`[train]`: the recipe."""

    epochs: int = Field(6, ge=1, le=1000, description="passes over the training reviews")
    batch_size: int = Field(128, ge=1, le=25_000, description="reviews in a global batch")
    optimizer: Literal["rmsprop", "adam", "adamw", "nadam", "sgd"] = "rmsprop"
    learning_rate: float = Field(0.001, gt=0, le=10, allow_inf_nan=False)
    seed: int = Field(1, ge=0, le=2**31 - 1, description="of weights, order and dropout")
    ema_momentum: Share = Field(0.99, description="moving average of the weights, 0 = none")
    keep: Literal["best", "last"] = Field("best", description="which epoch's weights")
    monitor: Literal["val_loss", "val_accuracy"] = Field("val_loss", description="what best means")
    early_stopping_patience: int = Field(0, ge=0, le=1000, description="epochs, 0 = off")
    reduce_lr_patience: int = Field(0, ge=0, le=1000, description="epochs, 0 = off")
    reduce_lr_factor: float = Field(0.5, gt=0, lt=1, allow_inf_nan=False)
    clipnorm: float = Field(0.0, ge=0, le=1e6, allow_inf_nan=False, description="0 = off")
    precision: Literal["float32", "float64", "float16", "bfloat16"] = "float32"
    xla: Literal["auto", "on", "off"] = "auto"
    steps_per_execution: int = Field(1, ge=1, le=10_000, description="steps a graph call")
    checkpoint_every_s: float = Field(60.0, gt=0, le=86_400, allow_inf_nan=False)
    log_every_steps: int = Field(10, ge=1, le=10_000, description="steps between two log writes")
    profile_steps: int = Field(0, ge=0, le=100, description="steps profiled after warm-up, 0 = off")


class Job(Table):
    """A whole job with every default filled in."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    model: ModelTable
    data: DataTable = DataTable()
    train: TrainTable = TrainTable()

    def to_toml(self, *, without_source: bool = False) -> str:
        """The job as a file that `harness train` takes again."""
        exclude = {"data": {"source"}} if without_source else None
        return tomli_w.dumps(self.model_dump(exclude=exclude))

    def without_effect(self) -> Iterator[str]:
        """Name the settings that say something and do nothing, each in one line."""
        if self.model.reset_after and self.model.architecture != "gru":
            yield "model.reset_after has no effect: it is a setting of the gru alone"
        if self.model.second_units and self.model.architecture != "stacked_lstm":
            yield "model.second_units has no effect: it is a setting of the stacked_lstm alone"
        if self.train.keep == "last" and self.train.early_stopping_patience == 0:
            watched = TrainTable.model_fields["monitor"].default
            if self.train.monitor != watched and self.train.reduce_lr_patience == 0:
                yield "train.monitor has no effect: nothing watches it with train.keep = 'last'"
        factor = TrainTable.model_fields["reduce_lr_factor"].default
        if self.train.reduce_lr_factor != factor and self.train.reduce_lr_patience == 0:
            yield "train.reduce_lr_factor has no effect: train.reduce_lr_patience is 0"


TABLES: dict[str, type[Table]] = {"model": ModelTable, "data": DataTable, "train": TrainTable}


def load_job(path: Path, overrides: Sequence[str] = (), seed: int | None = None) -> Job:
    """Read a job file, apply `--set` overrides and the seed, and check the whole.

    Args:
        path: the TOML file.
        overrides: each `table.key=value`, the value as TOML writes it, bare words allowed.
        seed: `train.seed`, when given.

    Raises:
        InputError: one line that names the key, the value, the rule and the remedy.
    """
    content = read_toml_file(path)
    content.setdefault("name", path.stem)
    if "search" in content:
        raise InputError(f"job {path}: holds a [search]; run it by: harness tune {path}")
    said = put_overrides(content, overrides, path)
    if seed is not None:
        said["train.seed"] = f"--seed {seed}"
        _put(content, "train", "seed", seed, path)
    settle_source(content, path, said)
    return check_job(content, path, said)


def settle_source(content: dict[str, Any], path: Path, said: Mapping[str, str]) -> None:
    """Make `data.source` absolute, so that a copy of the job finds it from anywhere.

    A relative path is relative to the job file, as `--set` gives it to the working folder; `~` is
    the home folder.
    """
    data = content.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    if isinstance(data, dict) and isinstance(source, str) and source:
        base = Path.cwd() if "data.source" in said else path.absolute().parent
        expanded = os.path.expanduser(source)  # noqa: PTH111 - never raises
        data["source"] = os.path.normpath(base / expanded)


def check_job(content: dict[str, Any], path: Path, said: Mapping[str, str] | None = None) -> Job:
    """Make a job of a file's content.

    Args:
        content: its tables and keys.
        path: the file, for messages.
        said: what gave the value of a key, where that was not the file.

    Raises:
        InputError: one line that names the key, the value, the rule and the remedy.
    """
    try:
        job = Job.model_validate(content)
    except ValidationError as error:
        raise InputError(explain(error, path, said or {})) from None
    _check_together(job, path)
    return job


def put_overrides(
    content: dict[str, Any],
    overrides: Sequence[str],
    path: Path,
    tables: Mapping[str, type[Table]] = TABLES,
) -> dict[str, str]:
    """Put `--set` overrides into a file's content, and give back what was said of which key.

    Raises:
        InputError: for one that is no `table.key=value` of these tables.
    """
    said = {}
    for override in overrides:
        table, key, value = _parse_override(override, tables)
        said[f"{table}.{key}"] = f"--set {override}"
        _put(content, table, key, value, path)
    return said


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or the known names where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def read_toml_file(path: Path) -> dict[str, Any]:
    """The content of a job file, not checked yet.

    Raises:
        InputError: if it can't be read, or is no TOML.
    """
    try:
        if path.is_dir():
            raise InputError(
                f"job {path}: is a folder, a job is a TOML file such as jobs/lstm.toml"
            )
        if not path.exists():
            folders = (path.parent, Path("jobs"))
            others = [str(p) for folder in folders for p in folder.glob("*.toml") if p != path]
            near = nearest(str(path), others)
            raise InputError(f"job {path}: no such file{near or '; jobs stand under jobs/'}")
        if not path.is_file():
            raise InputError(f"job {path}: is no plain file, a job is a TOML file")
        with path.open("rb") as file:
            raw = file.read(MAX_JOB_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"job {path}: can't be read ({error.strerror}); check its name and mode"
        ) from None
    if len(raw) > MAX_JOB_BYTES:
        raise InputError(f"job {path}: has over {MAX_JOB_BYTES:,} bytes and is no job file")
    if not raw.strip():
        raise InputError(f"job {path}: is empty, a job needs at least model.architecture")
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"job {path}: is not UTF-8 (byte {error.start}), save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"job {path}: is not TOML: {error}; see jobs/lstm.toml") from None


def _parse_override(text: str, tables: Mapping[str, type[Table]]) -> tuple[str, str, Any]:
    name, equals, value = text.partition("=")
    table, dot, key = name.strip().partition(".")
    if not equals or not dot or not table or not key:
        raise InputError(f"--set {text}: is not table.key=value, such as train.epochs=8")
    if table not in tables or key not in tables[table].model_fields:
        near = nearest_key(name, tables)
        raise InputError(f"--set {text}: a job has no key {name.strip()}{near}")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")
    except (ValueError, RecursionError):
        parsed = {}
    # What is no TOML value, or more than one, is a bare word: gru, best, off.
    return table, key, parsed["value"] if len(parsed) == 1 else value.strip()


def _put(content: dict[str, Any], table: str, key: str, value: object, path: Path) -> None:
    inner = content.setdefault(table, {})
    if not isinstance(inner, dict):
        raise InputError(f"job {path}: {table} = {inner!r} is not a table; write [{table}]")
    inner[key] = value


def nearest_key(name: str, tables: Mapping[str, type[Table]] = TABLES) -> str:
    """`; did you mean train.epochs?`, or the known keys where none is near."""
    known = [f"{table}.{key}" for table, cls in tables.items() for key in cls.model_fields]
    name = name.strip()
    # The key alone, when it stands in the wrong table or in none.
    alone = [k for k in known if k.partition(".")[2] == name.rpartition(".")[2]]
    return f"; did you mean {alone[0]}?" if alone else nearest(name, known)


def explain(
    error: ValidationError,
    path: Path,
    said: Mapping[str, str],
    tables: Mapping[str, type[Table]] = TABLES,
) -> str:
    """The first of pydantic's complaints in one line."""
    first, *others = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    where = f"job {path}: {key}"
    if first["type"] == "missing":
        known = f"; known: {', '.join(BUILDERS)}" if "architecture" in key else ""
        text = f"{where} is missing and has no default; write it into the file{known}"
        if key == "model":
            text = f"job {path}: model.architecture is missing; write [model] architecture = 'lstm'"
    elif first["type"] == "extra_forbidden":
        text = f"{where} is not a key of a job" + (
            nearest_key(key, tables) if "." in key else _nearest_top(key, tables)
        )
    else:
        value = repr(first["input"])
        shown = said.get(key, f"{where} = {value if len(value) < 60 else value[:57] + '...'}")
        rule = first["msg"][0].lower() + first["msg"][1:].replace("Input should", "should")
        text = f"{shown}: {rule.replace('input should', 'should')}"
        if first["type"] == "literal_error":
            text += nearest(str(first["input"]), _choices(key, tables))
        elif first["type"] == "model_type":
            text = f"{where} = {value}: should be a table; write [{key}]"
    return text + (f" (and {len(others)} more)" if others else "")


def _nearest_top(key: str, tables: Mapping[str, type[Table]]) -> str:
    near = difflib.get_close_matches(key, [*tables, "name"], n=1)
    return f"; did you mean {near[0]}?" if near else nearest_key(key, tables)


def _choices(key: str, tables: Mapping[str, type[Table]]) -> list[str]:
    table, _, field = key.partition(".")
    annotation = tables[table].model_fields[field].annotation
    return [str(choice) for choice in getattr(annotation, "__args__", ())]


def _check_together(job: Job, path: Path) -> None:
    train = job.train
    if job.data.validation_split == 0:
        if not job.data.test:
            raise InputError(
                f"job {path}: data.test = false: with data.validation_split = 0 nothing would be "
                "scored; set one of them"
            )
        for key, value in (
            ("keep", train.keep == "best"),
            ("early_stopping_patience", train.early_stopping_patience > 0),
            ("reduce_lr_patience", train.reduce_lr_patience > 0),
        ):
            if value:
                raise InputError(
                    f"job {path}: train.{key} = {getattr(train, key)!r} needs validation reviews, "
                    "data.validation_split is 0; set train.keep = 'last' and the patiences to 0"
                )
    if 0 < job.data.limit < 2:
        raise InputError(
            f"job {path}: data.limit = {job.data.limit}: should leave a review to train on and "
            "one to validate; take 2 or more, or 0 for all"
        )
