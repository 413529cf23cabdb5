"""A job: what to train, never where. Read from TOML, checked before TensorFlow is imported."""

import codecs
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from harness.architectures import ModelConfig
from harness.config import ConfigSection, Share


def _known_encoding(name: str) -> str:
    try:
        if codecs.lookup(name)._is_text_encoding:
            return name
    except (LookupError, ValueError):
        pass
    raise PydanticCustomError(
        "encoding", "Input should be an encoding of text that Python knows, such as latin-1"
    )


def _one_character(text: str) -> str:
    if text and (len(text) > 1 or not text.isascii() or text in '"\r\n\0'):
        raise PydanticCustomError("delimiter", "Input should be one character, such as ';'")
    return text


ColumnName = Annotated[str, Field(min_length=1, max_length=200)]


class DataConfig(ConfigSection):
    """`[data]`: which reviews, and how much of each."""

    source: str = Field(
        "",
        max_length=4000,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="your own texts, a table or a folder; empty = IMDB",
    )
    text_column: ColumnName = Field("text", description="own texts: column of the texts")
    label_column: ColumnName = Field("label", description="own texts: column of the classes")
    split_column: Annotated[str, Field(max_length=200)] = Field(
        "", description="own texts: column with `train` or `test`; empty = `split`, if it is there"
    )
    delimiter: Annotated[str, AfterValidator(_one_character)] = Field(
        "",
        description="own texts: character between the columns of a .csv or .tsv; empty = comma or "
        "tab",
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] = Field(
        "utf-8", max_length=40, description="own texts: encoding, such as `latin-1` or `utf-16`"
    )
    # 88,584 words and the three indices that Keras keeps free are all of IMDB's.
    vocab_size: int = Field(
        8000,
        ge=4,
        le=1_000_000,
        description="word indices; every rarer word becomes index 2; 88,587 is all of IMDB",
    )
    maxlen: int = Field(
        200, ge=1, le=5000, description="words used of each review, counted from its end"
    )
    validation_split: Share = Field(
        0.2, description="share of the training reviews, from their end, used for validation"
    )
    limit: int = Field(
        0, ge=0, le=10**9, description="reviews used of each split, from its start; 0 = all"
    )
    test: bool = Field(True, description="score the test set at the end of the run")


class TrainConfig(ConfigSection):
    """`[train]`: how to train."""

    epochs: int = Field(6, ge=1, le=1000, description="passes over the training reviews")
    batch_size: int = Field(
        128, ge=1, le=25_000, description="reviews in a global batch, over all replicas"
    )
    optimizer: Literal["rmsprop", "adam", "adamw", "nadam", "sgd"] = Field(
        "rmsprop", description="Keras optimizer"
    )
    learning_rate: float = Field(
        0.001, gt=0, le=10, allow_inf_nan=False, description="learning rate at the start"
    )
    seed: int = Field(1, ge=0, le=2**31 - 1, description="seed of weights, order and dropout")
    ema_momentum: Share = Field(
        0.99,
        description="largest momentum of the moving average of the weights, which is validated "
        "and saved; 0 = no average",
    )
    keep: Literal["best", "last"] = Field("best", description="save the best or the last epoch")
    monitor: Literal["val_loss", "val_accuracy"] = Field(
        "val_loss", description="score that decides which epoch is better"
    )
    early_stopping_patience: int = Field(
        0, ge=0, le=1000, description="epochs without a better one before training ends; 0 = off"
    )
    reduce_lr_patience: int = Field(
        0, ge=0, le=1000, description="epochs without a better one before a cut; 0 = off"
    )
    reduce_lr_factor: float = Field(
        0.5,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="learning rate is multiplied by it at a cut",
    )
    clipnorm: float = Field(
        0.0, ge=0, le=1e6, allow_inf_nan=False, description="largest norm of the gradient; 0 = off"
    )
    precision: Literal["float32", "float64", "float16", "bfloat16"] = Field(
        "float32", description="of the computation; with float16 and bfloat16 weights stay float32"
    )
    tf32: bool = Field(
        False,
        description="multiply float32 on a GPU with 10 bits of mantissa instead of 23, which is "
        "faster",
    )
    deterministic: bool = Field(
        True,
        description="repeat a run to the same bytes; false allows faster kernels on a GPU, whose "
        "results differ from run to run in their last bits",
    )
    xla: Literal["auto", "on", "off"] = Field(
        "auto", description="compile forward and backward pass with XLA; auto = where it is faster"
    )
    steps_per_execution: int = Field(
        1, ge=1, le=10_000, description="training steps in one call of the graph"
    )
    checkpoint_every_s: float = Field(
        60.0, gt=0, le=86_400, allow_inf_nan=False, description="seconds between two checkpoints"
    )
    log_every_steps: int = Field(
        10, ge=1, le=10_000, description="steps between two writes to the log"
    )
    profile_steps: int = Field(
        0, ge=0, le=100, description="steps to profile, after 20 steps of warm-up; 0 = off"
    )


# Keys of `[data]` that say how own texts are read; what was read has a checksum.
SOURCE_FORMAT = ("text_column", "label_column", "split_column", "delimiter", "encoding")

# Keys that came after the first version.
LATER_KEYS = {"model": ("options", "train_embeddings"), "train": ("tf32", "deterministic")}

# The free tables inside of the others: any names, which `--set` and a search reach too.
OPEN_TABLES = (("model", "options"),)

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
SOURCE_PATH = re.compile(r"([^\W\d]\w*/)*[^\W\d]\w*\.py")


def _check_code(code: Any) -> Any:
    if not isinstance(code, dict):
        raise PydanticCustomError("code", "Input should be a table of Python files")
    for path, source in code.items():
        if not SOURCE_PATH.fullmatch(str(path)) or not isinstance(source, str):
            raise PydanticCustomError(
                "code", f"Input should hold Python files with their text, not {str(path)[:40]!r}"
            )
    return dict(sorted(code.items()))


class Job(ConfigSection):
    """A whole job with every default filled in."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    # The sources of the functions that the job names, by their path: see `harness.own_code`.
    code: Annotated[dict[str, str], BeforeValidator(_check_code)] = Field({})

    def to_toml(self) -> str:
        """The job as a file that `harness train` takes again."""
        return dump_toml(self.model_dump())

    def identity(self) -> str:
        """The job in TOML, as far as it decides the result, wherever data and vectors are.

        A later key at its default is left out, so that runs begun before the key was known keep
        their identity.
        """
        exclude: dict[str, set[str]] = {"data": {"source", *SOURCE_FORMAT}, "model": {"embeddings"}}
        for table, keys in LATER_KEYS.items():
            defaults = {key for key in keys if _is_default(getattr(self, table), key)}
            exclude[table] = exclude.get(table, set()) | defaults
        content = self.model_dump(exclude=exclude)
        if not self.code:
            del content["code"]
        return tomli_w.dumps(content)

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted key, such as `model.options.filters`."""
        content = self.model_dump(include={*TABLES})
        return {
            key: value
            for table, keys in content.items()
            for name, setting in keys.items()
            for key, value in _flat(f"{table}.{name}", setting)
        }

    def without_effect(self) -> Iterator[str]:
        """Name the settings that say something and do nothing, each in one line."""
        if self.model.reset_after and self.model.architecture != "gru":
            yield "model.reset_after has no effect: it is a setting of the gru alone"
        if self.model.second_units and self.model.architecture != "stacked_lstm":
            yield "model.second_units has no effect: it is a setting of the stacked_lstm alone"
        if not self.model.train_embeddings and not self.model.embeddings:
            yield "model.train_embeddings = false leaves random vectors: model.embeddings is empty"
        if self.train.keep == "last" and self.train.early_stopping_patience == 0:
            watched = TrainConfig.model_fields["monitor"].default
            if self.train.monitor != watched and self.train.reduce_lr_patience == 0:
                yield "train.monitor has no effect: nothing watches it with train.keep = 'last'"
        factor = TrainConfig.model_fields["reduce_lr_factor"].default
        if self.train.reduce_lr_factor != factor and self.train.reduce_lr_patience == 0:
            yield "train.reduce_lr_factor has no effect: train.reduce_lr_patience is 0"


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _flat(f"{key}.{name}", inner)


def dump_toml(content: Mapping[str, Any]) -> str:
    """A job or a search as a file; its sources come last, as they are in their own files."""
    tables = {name: table for name, table in content.items() if name != "code"}
    for table, name in OPEN_TABLES:
        if not tables[table].get(name, True):  # an empty one says nothing
            tables[table] = {k: v for k, v in tables[table].items() if k != name}
    text = tomli_w.dumps(tables)
    if code := content.get("code"):
        text += "\n[code]\n"
    for path, source in (code or {}).items():
        # TOML's literal text has no escapes, and can't hold its own end or a control character.
        plain = "'''" not in source and not CONTROL.search(source)
        value = f"'''\n{source}'''" if plain else tomli_w.dumps({"v": source})[4:].rstrip("\n")
        text += f'"{path}" = {value}\n'
    return text


def _is_default(section: ConfigSection, key: str) -> bool:
    return bool(getattr(section, key) == type(section).model_fields[key].default)


TABLES: dict[str, type[ConfigSection]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
}
