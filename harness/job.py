"""A job: what to train, never where. Read from TOML, checked before TensorFlow is imported."""

import codecs
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from harness.architectures import ModelConfig, RightPaddedModel
from harness.config import ClassWeights, ConfigSection, Options, Share, dump_toml, flat, one_of
from harness.own_code import FORM, is_reference


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
        "",
        description="own texts: column with `train`, `validation` or `test`; empty = `split`, if "
        "it is there",
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
        0.2,
        description="share of the training reviews, from their end, used for validation; own texts "
        "with a validation split are validated on that, unless it is 0",
    )
    limit: int = Field(
        0, ge=0, le=10**9, description="reviews used of each split, from its start; 0 = all"
    )
    test: bool = Field(True, description="score the test set at the end of the run")
    bucket: bool = Field(
        False,
        description="batches of reviews of similar length, padded at their ends to the longest; "
        "pads change no result, and there are fewer time steps",
    )


# Each of Keras's optimizers, and the options that it takes beside the keys of `[train]`.
_ADAM: dict[str, type] = {"beta_1": float, "beta_2": float, "epsilon": float}
OPTIMIZERS: dict[str, dict[str, type]] = {
    "rmsprop": {"rho": float, "momentum": float, "epsilon": float, "centered": bool},
    "adam": {**_ADAM, "amsgrad": bool},
    "adamw": {**_ADAM, "amsgrad": bool},
    "nadam": _ADAM,
    "sgd": {"momentum": float, "nesterov": bool},
    "adadelta": {"rho": float, "epsilon": float},
    "adafactor": {
        "beta_2_decay": float,
        "epsilon_1": float,
        "epsilon_2": float,
        "clip_threshold": float,
        "relative_step": bool,
    },
    "adagrad": {"initial_accumulator_value": float, "epsilon": float},
    "adamax": _ADAM,
    "ftrl": {
        "learning_rate_power": float,
        "initial_accumulator_value": float,
        "l1_regularization_strength": float,
        "l2_regularization_strength": float,
        "l2_shrinkage_regularization_strength": float,
        "beta": float,
    },
    "lion": {"beta_1": float, "beta_2": float},
    "muon": {
        **{f"adam_beta_{i}": float for i in (1, 2)},
        **{f"muon_{i}": float for i in "abc"},
        "adam_weight_decay": float,
        "epsilon": float,
        "exclude_embeddings": bool,
        "adam_lr_ratio": float,
        "momentum": float,
        "ns_steps": int,
        "nesterov": bool,
        "rms_rate": float,
    },
    "schedulefreeadamw": {**_ADAM, "warmup_steps": int},
}
OF_ALL_OPTIMIZERS: dict[str, type] = {"weight_decay": float}

# The scores of the validation reviews by which an epoch is judged, and what is better.
SCORES: dict[str, Literal["min", "max"]] = {
    "val_loss": "min",
    "val_accuracy": "max",
    "val_balanced_accuracy": "max",
    "val_f1": "max",
    "val_f1_macro": "max",
    "val_f1_weighted": "max",
    "val_precision": "max",
    "val_recall": "max",
    "val_roc_auc": "max",
    "val_top_5_accuracy": "max",
    "val_log_loss": "min",
}
OF_EACH_EPOCH = ("val_loss", "val_accuracy")  # the others are computed where one is watched


def _check_references(names: list[str]) -> list[str]:
    for name in names:
        if not is_reference(name):
            raise PydanticCustomError("choice", f"Input should list {FORM}, not {name[:60]!r}")
    if len(set(names)) < len(names):
        raise PydanticCustomError("choice", "Input should name each callback once")
    return names


def _known_optimizer(name: str) -> str:
    if name not in OPTIMIZERS and not is_reference(name):
        names = ", ".join(map(repr, OPTIMIZERS))
        raise PydanticCustomError("choice", f"Input should be {names} or {FORM}")
    return name


def _check_reference(name: str) -> str:
    if name and not is_reference(name):
        raise PydanticCustomError("choice", f'Input should be {FORM}, or ""')
    return name


class TrainConfig(ConfigSection):
    """`[train]`: how to train."""

    epochs: int = Field(6, ge=1, le=1000, description="passes over the training reviews")
    batch_size: int = Field(
        128, ge=1, le=25_000, description="reviews in a global batch, over all replicas"
    )
    optimizer: Annotated[str, AfterValidator(_known_optimizer)] = Field(
        "rmsprop", description="Keras optimizer; your own is `file.py:function`"
    )
    optimizer_options: Options = Field(
        {}, description="the optimizer's own options, such as `weight_decay`, which all take"
    )
    learning_rate: float = Field(
        0.001,
        gt=0,
        le=10,
        description="learning rate at the start, after the warm-up if there is one",
    )
    schedule: Literal["constant", "cosine", "linear", "steps"] = Field(
        "constant", description="how the learning rate falls from step to step"
    )
    schedule_epochs: int = Field(
        0, ge=0, le=1000, description="epochs until it has fallen; 0 = `epochs`"
    )
    schedule_floor: Share = Field(
        0.0, description="cosine and linear only: share of the learning rate that is left"
    )
    schedule_drops: list[Annotated[float, Field(gt=0, le=1000)]] = Field(
        [], max_length=100, description="steps only: epochs after which the learning rate drops"
    )
    schedule_factor: float = Field(
        0.1, gt=0, lt=1, description="steps only: factor of the learning rate at each drop"
    )
    warmup_epochs: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="epochs, also parts of one, over which the learning rate rises from 0",
    )
    seed: int = Field(1, ge=0, le=2**31 - 1, description="seed of weights, order and dropout")
    ema_momentum: Share = Field(
        0.99,
        description="largest momentum of the moving average of the weights, which is validated "
        "and saved; 0 = no average",
    )
    average_epochs: int = Field(
        1,
        ge=1,
        le=100,
        description="epochs, up to the latest, whose weights are averaged; the average is "
        "validated and saved",
    )
    loss: Annotated[str, AfterValidator(_check_reference)] = Field(
        "",
        max_length=4000,
        description="your own loss in training, `file.py:function`; empty = cross-entropy",
    )
    label_smoothing: Share = Field(
        0.0, description="share of each label that is spread over all classes in training"
    )
    adversarial: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="size of the adversarial change to the word vectors, in lengths of a vector; "
        "each review is trained on unchanged and changed; 0 = off, 5 is usual",
    )
    class_weights: ClassWeights = Field(
        "",
        description='weights of the classes in the loss: a table by their names, or `"balanced"`; '
        '`""` = none',
    )
    callbacks: Annotated[list[str], AfterValidator(_check_references)] = Field(
        [], max_length=20, description="functions that give Keras callbacks: `file.py:function`"
    )
    keep: Annotated[str, one_of("best", "last", *SCORES)] = Field(
        "best", description="save the best epoch by `monitor` or by another score, or the last one"
    )
    monitor: Annotated[str, one_of(*SCORES)] = Field(
        "val_loss", description="score that decides which epoch is better"
    )
    early_stopping_patience: int = Field(
        0, ge=0, le=1000, description="epochs without a better one before training ends; 0 = off"
    )
    reduce_lr_patience: int = Field(
        0,
        ge=0,
        le=1000,
        description="epochs in a row, none better by more than 0.0001, before a cut; 0 = off",
    )
    reduce_lr_factor: float = Field(
        0.5, gt=0, lt=1, description="learning rate is multiplied by it at a cut"
    )
    clipnorm: float = Field(0.0, ge=0, le=1e6, description="largest norm of the gradient; 0 = off")
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
    compile_evaluation: bool = Field(
        False, description="compile validation and test with XLA too, on a CPU; other last digits"
    )
    block_lstm: bool = Field(
        False, description="train LSTM layers by one operation each, on a CPU; other last digits"
    )
    steps_per_execution: int = Field(
        1, ge=1, le=10_000, description="training steps in one call of the graph"
    )
    checkpoint_every_s: float = Field(
        60.0, gt=0, le=86_400, description="seconds between two checkpoints"
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
LATER_KEYS = {
    "model": ("options", "train_embeddings", "word_dropout", "ngram_ratios", "recurrent"),
    "data": ("bucket",),
    "train": (
        *("tf32", "deterministic", "optimizer_options", "schedule", "schedule_epochs"),
        *("schedule_floor", "schedule_drops", "schedule_factor", "warmup_epochs"),
        *("loss", "label_smoothing", "class_weights", "callbacks", "average_epochs"),
        *("adversarial", "compile_evaluation", "block_lstm"),
    ),
}

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
        for table in LATER_KEYS:
            exclude[table] = exclude.get(table, set()) | self.unused_later_keys(table)
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
            for key, value in flat(f"{table}.{name}", setting)
        }

    def unused_later_keys(self, table: str) -> set[str]:
        """The keys of a section that came later and are at their defaults."""
        return {key for key in LATER_KEYS[table] if is_default(getattr(self, table), key)}

    def network(self) -> ModelConfig:
        """`[model]`, with what else decides how the network is built."""
        kind = RightPaddedModel if self.data.bucket else ModelConfig
        return kind(**self.model.model_dump())

    def without_effect(self) -> Iterator[str]:
        """Name the settings that say something and do nothing, each in one line."""
        name, is_own = self.model.architecture, self.model.is_own  # one's own may read any key
        for key, reader in (("reset_after", "gru"), ("second_units", "stacked_lstm")):
            if getattr(self.model, key) and name != reader and not is_own:
                yield f"model.{key} has no effect: it is a setting of the {reader} alone"
        if not self.model.train_embeddings and not self.model.embeddings:
            yield "model.train_embeddings = false leaves random vectors: model.embeddings is empty"
        watches = self.train.early_stopping_patience or self.train.reduce_lr_patience
        if self.train.keep != "best" and not watches and not is_default(self.train, "monitor"):
            yield f"train.monitor has no effect: train.keep = {self.train.keep!r} does not watch it"
        if self.train.block_lstm and (why := self.block_lstm_without_effect()):
            yield f"train.block_lstm has no effect: {why}"
        yield from self._schedule_without_effect()
        if self.train.loss and self.train.label_smoothing:
            yield f"train.label_smoothing has no effect: train.loss = {self.train.loss!r}"
        if not is_default(self.train, "reduce_lr_factor") and self.train.reduce_lr_patience == 0:
            yield "train.reduce_lr_factor has no effect: train.reduce_lr_patience is 0"

    def block_lstm_without_effect(self) -> str:
        """Why the block kernel can't compute the network's layers; empty if it may."""
        if self.model.is_own or "lstm" not in self.model.architecture or not self.model.recurrent:
            return "it is for lstm, bilstm and stacked_lstm with their recurrent layers"
        if self.train.precision != "float32":
            return "the operation computes in train.precision = float32"
        if self.train.xla == "on":
            return "train.xla = on compiles the loops"
        return ""

    def _schedule_without_effect(self) -> Iterator[str]:
        for key, schedules in (
            ("schedule_epochs", ("cosine", "linear")),
            ("schedule_floor", ("cosine", "linear")),
            ("schedule_factor", ("steps",)),
            ("schedule_drops", ("steps",)),
        ):
            if self.train.schedule not in schedules and not is_default(self.train, key):
                names = " and ".join(schedules)
                yield f"train.{key} has no effect: it is a setting of train.schedule = {names}"


def is_default(section: ConfigSection, key: str) -> bool:
    """Whether a key of a table has its default."""
    return bool(getattr(section, key) == type(section).model_fields[key].default)


TABLES: dict[str, type[ConfigSection]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
}
