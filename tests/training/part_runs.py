"""Trains tiny runs on one replica, on two, and with kills; arguments: `FOLDER CASE…`.

A case is a name in CASES, or the number of a random job. This is a script, because a process can
divide the CPU into devices only once. It prints one line of JSON per case: its settings, and for
each run the checksums of the files that must be equal, and the metrics.
"""

import contextlib
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

from harness.architectures import ARCHITECTURES
from harness.compute.execution_plan import choose
from harness.compute.strategy import import_tensorflow, make_strategy, one_device, parse_devices
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.job.keys import OPTIMIZERS, Job
from tests.conftest import JOBS

SETTINGS = [
    *("data.vocab_size=30", "data.maxlen=6", "data.validation_split=0.1", "model.units=4"),
    *("model.embedding_dim=4", "train.batch_size=16", "train.ema_momentum=0.9"),
    *("train.log_every_steps=3", "train.xla=off", "train.epochs=4"),
    "train.checkpoint_every_s=0.000001",
]
CASES = {
    # adamw, cosine schedule with warm-up, smoothed labels, class weights, callback with a state
    "parts": ("own/parts", []),
    # a custom loss and optimizer
    "own": ("own/focal", ["train.learning_rate=0.01", "train.schedule=cosine"]),
    # a custom network
    "network": ("own/conv_gru", ["train.learning_rate=0.01"]),
}
# Keras's muon can't compute in float64.
PAIRS = [
    (optimizer, precision)
    for optimizer in OPTIMIZERS
    for precision in ("float32", "float64", "float16", "bfloat16")
    if (optimizer, precision) != ("muon", "float64")
]
# A random job has a random value for some of these keys.
VALUES: dict[str, tuple[object, ...]] = {
    "model.pooling": ("max", "mean", "max+mean"),
    "model.reset_after": ("true",),
    "model.second_units": (3,),
    "model.dropout": (0, 0.3),
    "model.spatial_dropout": (0, 0.3),
    "model.word_dropout": (0.2,),
    "model.ngram_ratios": (1, 3),
    "model.recurrent": ("false",),
    "model.train_embeddings": ("false",),
    "data.bucket": ("true",),
    "data.maxlen": (3, 9),
    "train.batch_size": (7, 30),
    "train.learning_rate": (0.02,),
    "train.optimizer_options.weight_decay": (0.01,),
    "train.schedule": ("cosine", "linear", "steps"),
    "train.schedule_epochs": (3,),
    "train.schedule_floor": (0.1,),
    "train.schedule_drops": ("[1, 2.5]",),
    "train.warmup_epochs": (0.5, 1.2),
    "train.ema_momentum": (0, 0.99),
    "train.label_smoothing": (0.1,),
    "train.adversarial": (5,),
    "train.class_weights": ("balanced",),
    "train.keep": ("last", "val_f1", "val_log_loss"),
    "train.monitor": ("val_accuracy", "val_roc_auc"),
    "train.early_stopping_patience": (2,),
    "train.reduce_lr_patience": (1,),
    "train.clipnorm": (0.1,),
    "train.xla": ("auto", "on"),
    "train.steps_per_execution": (2, 4),
    "train.checkpoint_every_s": (0.05, 3600),
}


def random_job(number: int) -> tuple[str, list[str]]:
    """Return the file and the settings of a random job, which depend on the number only.

    The jobs 0 to `len(PAIRS) - 1` combine every optimizer with every precision.
    """
    draw = random.Random(number)  # noqa: S311 - not a secret
    optimizer, precision = PAIRS[number % len(PAIRS)]
    while True:
        keys = [key for key in VALUES if draw.random() < 0.3]
        settings = [
            f"model.architecture={draw.choice(ARCHITECTURES)}",
            *(f"train.optimizer={optimizer}", f"train.precision={precision}"),
            *(f"{key}={draw.choice(VALUES[key])}" for key in keys),
        ]
        with contextlib.suppress(InputError):
            load_job(JOBS / "lstm.toml", [*SETTINGS, *settings])
            return "lstm", settings


def main(folder: Path, *names: str) -> None:
    """Train each case on one replica, on two, and with two kills; print the outcomes."""
    import_tensorflow(None, 1, load_job(JOBS / "lstm.toml", SETTINGS))
    two, one = make_strategy(parse_devices("cpu:2")), one_device()
    for name in names:
        path, settings = random_job(int(name)) if name.isdecimal() else CASES[name]
        job = load_job(JOBS / f"{path}.toml", [*SETTINGS, *settings])
        found: dict[str, Any] = {"case": name, "settings": settings}
        draw = random.Random(name)  # noqa: S311 - not a secret
        for _ in range(2):
            with contextlib.suppress(Killed):
                train_once(folder / name / "killed", job, two, killed_at=draw.randint(2, 12))
        for run, strategy in (("one", one), ("two", two), ("killed", two)):
            train_once(folder / name / run, job, strategy)
            found[run] = outcome(folder / name / run)
        print(json.dumps(found))  # noqa: T201 - for the test


class Killed(BaseException):
    """Ends the training without a checkpoint."""


def train_once(folder: Path, job: Job, strategy: Any, *, killed_at: int = 0) -> None:
    """Train or resume a run until it has finished, or is killed at a check for a signal."""
    from harness.system.processes import StopRequest
    from tests.training.test_trainer import train_in

    class StopAt(StopRequest):
        num_checks = 0

        def check(self) -> None:
            self.num_checks += 1
            if self.num_checks == killed_at:
                raise Killed

    train_in(folder, job, strategy=strategy, plan=choose(job, "cpu", 1), stop=StopAt())


def outcome(folder: Path) -> dict[str, Any]:
    """Return checksums of the files that must be equal, and the metrics."""
    names = ("metrics.jsonl", "model.keras", "predictions.npz", "validation_predictions.npz")
    files = {name: (folder / name).read_bytes() for name in names}
    lines = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    kept = json.loads((folder / "result.json").read_text())["kept_epoch"]
    return {"sums": sums, "metrics": lines, "kept_epoch": kept}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
