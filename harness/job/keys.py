"""All keys of a job: types, ranges, defaults and meanings. No key chooses a machine or device."""

import codecs
import json
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from harness.architectures import ModelConfig, RightPaddedModel
from harness.config import (
    ClassWeights,
    ConfigSection,
    Facts,
    Options,
    Share,
    dump_toml,
    facts_of,
    flat,
    is_reference,
    keys_of,
    without_effect,
)
from harness.errors import suggest


def _known_encoding(name: str) -> str:
    try:
        if codecs.lookup(name)._is_text_encoding:
            return name
    except (LookupError, ValueError):
        pass
    raise PydanticCustomError(
        "encoding",
        "Input should be the name of a text encoding that Python supports, such as latin-1",
    )


def _one_character(text: str) -> str:
    text = "\t" if text == r"\t" else text  # '\t' in TOML, or \t in a shell
    if text and (len(text) > 1 or not text.isascii() or text in '"\r\n\0'):
        raise PydanticCustomError("delimiter", "Input should be one character, such as ';'")
    return text


def _leaves_one_to_validate(limit: int) -> int:
    if limit == 1:
        raise PydanticCustomError(
            "limit",
            "Input should be at least 2 (a review for training and a review for validation), or 0, "
            "which means all reviews",
        )
    return limit


# jobs/README.md contains the docstring of each check after the description of the key.
def _scores_something(job: "Job") -> str:
    """`test` must be true if `validation_split` is 0."""
    if job.data.test or job.data.validation_split:
        return ""
    return (
        "the run would have no score, because data.validation_split is 0; set data.test to true, "
        "or data.validation_split above 0"
    )


LARGEST_VOCAB = 1_000_000
SAME_REVIEWS = "all trials must have the same reviews"
# The metadata (`Facts`) of every key that describes the format of a user's texts. A run's identity
# contains the checksum of the texts instead of these keys.
FORMAT = Facts(changes="nothing", not_searched=SAME_REVIEWS, only_with={"data.source": ()})


class DataConfig(ConfigSection):
    """`[data]`: the reviews, their number and length."""

    source: Annotated[str, Facts(is_path=True, changes="nothing", not_searched=SAME_REVIEWS)] = (
        Field("", description="for your texts: path of a table or folder; empty = IMDB")
    )
    text_column: Annotated[str, FORMAT] = Field(
        "text",
        description="for your texts: name of the column that contains the text",
    )
    label_column: Annotated[str, FORMAT] = Field(
        "label",
        description="for your texts: name of the column that contains the class",
    )
    split_column: Annotated[str, FORMAT] = Field(
        "",
        description="for your texts: name of the column that contains `train`, `validation` or "
        "`test`; empty = the column `split`, if it exists",
    )
    delimiter: Annotated[str, AfterValidator(_one_character), FORMAT] = Field(
        "",
        description="for your texts: character that separates the columns of a .csv or .tsv; "
        "empty = comma or tab",
    )
    encoding: Annotated[str, AfterValidator(_known_encoding), FORMAT] = Field(
        "utf-8",
        description="for your texts: character encoding, such as `latin-1` or `utf-16`",
    )
    # 88,588 = the 88,584 words of IMDB and the indices 0 to 3, which stand for no word
    vocab_size: int = Field(
        8000,
        ge=4,
        le=LARGEST_VOCAB,
        description="size of the vocabulary; less frequent words get index 2; 88,588 = all words "
        "of IMDB",
    )
    maxlen: int = Field(
        200,
        ge=1,
        le=5000,
        description="length of the input in words; longer reviews keep their last words",
    )
    validation_split: Annotated[
        Share,
        Facts(not_searched="all trials must be validated on the same reviews"),
    ] = Field(
        0.2,
        description="share of the training reviews that is used for validation; these are the "
        "last training reviews; if your texts have a validation split, any value above 0 selects "
        "this split; 0 = no validation: train on all reviews except the test reviews",
    )
    limit: Annotated[
        int,
        AfterValidator(_leaves_one_to_validate),
        Facts(not_searched=SAME_REVIEWS, allowed="0, or 2 to 1,000,000,000"),
    ] = Field(
        0,
        ge=0,
        le=10**9,
        description="how many reviews at the start of each split are used; 0 = all",
    )
    test: Annotated[
        bool,
        Facts(not_searched="a search must not read the test set", check=_scores_something),
    ] = Field(True, description="evaluate the model on the test set at the end of the run")
    bucket: bool = Field(
        False, description="make batches of reviews of similar length, which need less padding"
    )


# The optimizers of Keras that a job can name, and the options that a job can set for each of them.
_ADAM = ("beta_1", "beta_2", "epsilon")
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "rmsprop": ("rho", "momentum", "epsilon", "centered"),
    "adam": (*_ADAM, "amsgrad"),
    "adamw": (*_ADAM, "amsgrad"),
    "nadam": _ADAM,
    "sgd": ("momentum", "nesterov"),
    "adadelta": ("rho", "epsilon"),
    "adafactor": ("beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "relative_step"),
    "adagrad": ("initial_accumulator_value", "epsilon"),
    "adamax": _ADAM,
    "ftrl": (
        *("learning_rate_power", "initial_accumulator_value", "beta"),
        *("l1_regularization_strength", "l2_regularization_strength"),
        "l2_shrinkage_regularization_strength",
    ),
    "lion": ("beta_1", "beta_2"),
    "muon": (
        *("adam_beta_1", "adam_beta_2", "adam_weight_decay", "adam_lr_ratio", "rms_rate"),
        *("muon_a", "muon_b", "muon_c", "epsilon", "momentum", "nesterov"),
        *("exclude_embeddings", "ns_steps"),
    ),
    "schedulefreeadamw": (*_ADAM, "warmup_steps"),
}
OF_ALL_OPTIMIZERS = ("weight_decay",)
# The types of the options that are not floats.
TYPES: dict[str, type] = {
    **dict.fromkeys(("centered", "amsgrad", "nesterov", "relative_step"), bool),
    "exclude_embeddings": bool,
    "ns_steps": int,
    "warmup_steps": int,
}

# The validation scores that can compare epochs, and whether the best value is the `min` or `max`.
SCORES: dict[str, Literal["min", "max"]] = {
    "val_accuracy": "max",
    "val_loss": "min",
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
# These scores are always computed, other scores only if a key names them.
OF_EACH_EPOCH = ("val_loss", "val_accuracy")
# These scores can't rank trials. A model that always predicts class 1 has the best recall. A model
# that rarely predicts class 1 may have the best precision. Top-5 accuracy is below 1 only with more
# than five classes.
NO_OBJECTIVES = ("val_precision", "val_recall", "val_top_5_accuracy")
OBJECTIVES = tuple(name for name in SCORES if name not in NO_OBJECTIVES)
# Learning-rate schedules whose number of epochs must be known in advance.
DECAYS = ("cosine", "linear")


def _rises(drops: list[float]) -> list[float]:
    if sorted(set(drops)) != drops:
        raise PydanticCustomError("drops", "Input should be numbers in strictly increasing order")
    return drops


def _fits_the_optimizer(job: "Job") -> str:
    """`optimizer_options` must contain only options of the chosen `optimizer`."""
    train = job.train
    if is_reference(train.optimizer):
        return ""  # only the custom function knows the options
    known = (*OF_ALL_OPTIMIZERS, *OPTIMIZERS[train.optimizer])
    for name, value in train.optimizer_options.items():
        if name not in known:
            return f"for {train.optimizer}, a job has no option {name}{suggest(name, known)}"
        kind = TYPES.get(name, float)
        if type(value) is not kind and not (kind is float and type(value) is int):
            return f"{name} should be of type {kind.__name__}"
    return ""


def _fits_muon(job: "Job") -> str:
    """`precision` must not be `float64` if `optimizer` is `muon`."""
    if job.train.precision == "float64" and job.train.optimizer == "muon":
        return "Keras's muon can't compute in float64; choose another precision or train.optimizer"
    return ""


def _has_drops(job: "Job") -> str:
    """`schedule_drops` must be set if `schedule` is `steps`."""
    if job.train.schedule == "steps" and not job.train.schedule_drops:
        return "needs train.schedule_drops, such as [3, 5]"
    return ""


def _ends_before_the_schedule(job: "Job") -> str:
    """The warm-up must be shorter than a `cosine` or `linear` schedule."""
    length = job.train.schedule_epochs or job.train.epochs
    if job.train.schedule in DECAYS and job.train.warmup_epochs >= length:
        return f"should be below the {length} epochs of the schedule"
    return ""


def _has_vectors_to_move(job: "Job") -> str:
    """`adversarial` must be 0 if the network is custom or `train_embeddings` is false."""
    if job.train.adversarial and (job.model.is_own or not job.model.train_embeddings):
        return (
            "needs a built-in network and model.train_embeddings = true; otherwise set "
            "train.adversarial to 0"
        )
    return ""


WATCHES: dict[str, tuple[object, ...]] = {
    "train.keep": ("best",),
    "train.early_stopping_patience": (),
    "train.reduce_lr_patience": (),
}
NO_LISTS = "a search varies single values, not lists"
Patience = Annotated[int, Field(ge=0, le=1000), Facts(unvalidated=0)]
OF_WORKERS = "all trials of a worker must have the same value"


class TrainConfig(ConfigSection):
    """`[train]`: how to train."""

    epochs: int = Field(6, ge=1, le=1000, description="number of passes over the training reviews")
    batch_size: int = Field(
        128,
        ge=1,
        le=25_000,
        description="number of reviews in a global batch, summed over all replicas",
    )
    optimizer: Annotated[str, Facts(choices=tuple(OPTIMIZERS), is_function=True)] = Field(
        "rmsprop", description="Keras optimizer; a custom optimizer is `file.py:function`"
    )
    optimizer_options: Annotated[Options, Facts(check=_fits_the_optimizer)] = Field(
        {}, description="the optimizer's other options, named as in Keras, such as `weight_decay`"
    )
    learning_rate: float = Field(
        0.001, gt=0, le=10, description="learning rate after any warm-up and before any decay"
    )
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "steps"], Facts(check=_has_drops)
    ] = Field("constant", description="decay of the learning rate, updated at every training step")
    schedule_epochs: Annotated[int, Facts(only_with={"train.schedule": DECAYS})] = Field(
        0, ge=0, le=1000, description="number of epochs of warm-up and decay together; 0 = `epochs`"
    )
    schedule_floor: Annotated[Share, Facts(only_with={"train.schedule": DECAYS})] = Field(
        0.0, description="final learning rate as a share of `learning_rate`"
    )
    schedule_drops: Annotated[
        list[Annotated[float, Field(gt=0, le=1000)]],
        AfterValidator(_rises),
        Facts(
            only_with={"train.schedule": ("steps",)},
            not_searched=NO_LISTS,
            allowed="numbers in strictly increasing order, each above 0 and at most 1,000",
        ),
    ] = Field(
        [],
        description="numbers of epochs after which the learning rate drops, fractions allowed",
    )
    schedule_factor: Annotated[float, Facts(only_with={"train.schedule": ("steps",)})] = Field(
        0.1, gt=0, lt=1, description="multiplier of the learning rate at each drop"
    )
    warmup_epochs: Annotated[float, Facts(check=_ends_before_the_schedule)] = Field(
        0.0,
        ge=0,
        le=1000,
        description="number of epochs in which the learning rate rises from 0, fractions allowed",
    )
    seed: Annotated[
        int, Facts(not_searched="search.executions trains each trial with several seeds")
    ] = Field(
        1, ge=0, le=2**31 - 1, description="seed of initial weights, order of reviews and dropout"
    )
    ema_momentum: Share = Field(
        0.99,
        description="decay of the exponential moving average (EMA) of the weights; the decay rises "
        "to this value during the first steps; the averaged weights are evaluated and saved; "
        "0 = no EMA",
    )
    loss: Annotated[str, Facts(choices=("",), is_function=True)] = Field(
        "",
        description="custom training loss, `file.py:function`; empty = cross-entropy",
    )
    label_smoothing: Annotated[Share, Facts(only_with={"train.loss": ("",)})] = Field(
        0.0,
        description="share of each label's probability that is spread evenly over all classes in "
        "the training loss",
    )
    adversarial: Annotated[float, Facts(check=_has_vectors_to_move)] = Field(
        0.0,
        ge=0,
        le=1000,
        description="norm of the adversarial perturbation of a review, in units of the "
        "root mean square of its word vectors; 0 = off; a typical value is 5",
    )
    class_weights: Annotated[ClassWeights, Facts(allowed="0 to 1,000,000")] = Field(
        "",
        description='class weights of the training loss: table `class = weight`, or `"balanced"`; '
        '`""` = none',
    )
    callbacks: Annotated[list[str], Facts(is_function=True, not_searched=NO_LISTS)] = Field(
        [], description="functions that return a Keras callback: `file.py:function`"
    )
    keep: Annotated[
        str,
        Facts(
            choices=("best", "last", *SCORES),
            allowed="`best`, `last`, or a score that `monitor` allows",
            unvalidated="last",
        ),
    ] = Field(
        "best",
        description="epoch whose weights are saved: the best by `monitor`, the best by another "
        "score, or the last",
    )
    monitor: Annotated[str, Facts(choices=tuple(SCORES), only_with=WATCHES)] = Field(
        "val_loss", description="validation score by which epochs are compared"
    )
    early_stopping_patience: Patience = Field(
        0, description="epochs without improvement before training stops; 0 = off"
    )
    reduce_lr_patience: Patience = Field(
        0,
        description="epochs without improvement by more than 0.0001 before the learning rate is "
        "reduced; 0 = off",
    )
    reduce_lr_factor: Annotated[float, Facts(only_with={"train.reduce_lr_patience": ()})] = Field(
        0.5, gt=0, lt=1, description="multiplier of the learning rate at each reduction"
    )
    clipnorm: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="largest norm of the gradient of all weights; larger gradients are scaled "
        "down; 0 = off",
    )
    precision: Annotated[
        Literal["float32", "float64", "float16", "bfloat16"], Facts(check=_fits_muon)
    ] = Field(
        "float32",
        description="precision of the computation; float16 and bfloat16 keep float32 weights",
    )
    tf32: Annotated[bool, Facts(not_searched=OF_WORKERS)] = Field(
        False,
        description="use TF32 on a GPU: faster float32 products, with 10 bits of mantissa "
        "instead of 23",
    )
    deterministic: Annotated[bool, Facts(not_searched=OF_WORKERS)] = Field(
        True,
        description="repeated runs give bitwise identical results; false allows faster GPU "
        "kernels, whose results vary in the last bits",
    )
    xla: Literal["auto", "on", "off"] = Field(
        "auto",
        description="use of the compiler XLA: on, off (then TensorFlow's BlockLSTM is off too), or "
        "auto = whatever is fastest for the device and the network",
    )
    steps_per_execution: int = Field(
        1,
        ge=1,
        le=100,
        description="training steps per call of the TensorFlow graph; a run saves and stops only "
        "between two calls",
    )
    checkpoint_every_s: Annotated[float, Facts(changes="nothing")] = Field(
        60.0, gt=0, le=86_400, description="seconds between checkpoints"
    )
    log_every_steps: Annotated[int, Facts(changes="nothing")] = Field(
        10, ge=1, le=10_000, description="number of training steps between two entries of the log"
    )


class Job(ConfigSection):
    """A job. A key that the job file does not set has its default value."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    # The sources of custom functions; each key is the path of a source.
    code: dict[str, str] = Field({})

    def to_toml(self) -> str:
        """Return the content of a job file for `harness train`."""
        return dump_toml(self.model_dump())

    def value(self, key: str) -> Any:
        """Return the value of a key such as `train.epochs`."""
        table, _, name = key.partition(".")
        return getattr(getattr(self, table), name)

    def identity(self) -> str:
        """Return the settings that determine a run's result, as JSON.

        The JSON does not contain the paths of data and word vectors. The JSON contains no key whose
        value is the default, so that the JSON stays the same if a later version of the harness adds
        a key.
        """
        deciding = {key: self.value(key) for key in DECIDING}
        chosen = {key: value for key, value in deciding.items() if value != KEYS[key].default}
        return json.dumps({"name": self.name, "code": self.code, **chosen}, sort_keys=True)

    def changes(self, other: "Job") -> list[str]:
        """Return the keys that affect results and have another value in the job `other`."""
        return [key for key in DECIDING if self.value(key) != other.value(key)]

    def settings(self) -> dict[str, Any]:
        """Return the value of every key, including keys such as `model.options.filters`."""
        return {name: setting for key in KEYS for name, setting in flat(key, self.value(key))}

    def network(self) -> ModelConfig:
        """Return `[model]`, as a `RightPaddedModel` if `data.bucket` puts padding on the right."""
        kind = RightPaddedModel if self.data.bucket else ModelConfig
        return kind(**self.model.model_dump())

    def broken_rule(self) -> tuple[str, str] | None:
        """Return a key that contradicts others, and an error message; None if all keys agree."""
        for key, facts in FACTS.items():
            value = self.value(key)
            if not self.data.validation_split and facts.unvalidated not in (None, value):
                return key, (
                    "needs validation reviews, but data.validation_split is 0; set "
                    f"{key} to {facts.unvalidated!r}"
                )
            if facts.check and (rule := facts.check(self)):
                return key, rule
        return None

    def unused_keys(self) -> Iterator[tuple[str, str]]:
        """Yield each key that is set but has no effect, and the setting that the key needs."""
        for key, needed in without_effect(TABLES, {key: self.value(key) for key in KEYS}):
            # A custom network can read any key.
            if not (self.model.is_own and "model.architecture" in FACTS[key].only_with):
                yield key, needed

    def without_effect(self, searched: Collection[str] = ()) -> Iterator[str]:
        """Yield a line about each setting that has no effect in any trial.

        Args:
            searched: the keys that a search varies.
        """
        for key, needed in self.unused_keys():
            if not {*FACTS[key].only_with} & {*searched}:
                yield f"{key} has no effect without {needed}"


TABLES: dict[str, type[ConfigSection]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
}
KEYS = keys_of(TABLES)
FACTS: dict[str, Facts] = {key: facts_of(info) for key, info in KEYS.items()}
DECIDING = tuple(key for key, facts in FACTS.items() if facts.changes != "nothing")
# The keys of `[data]` that describe the format of texts.
FORMAT_KEYS = tuple(key.removeprefix("data.") for key, each in FACTS.items() if each == FORMAT)
