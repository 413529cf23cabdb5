"""Trains tiny runs on one replica, on two, and with a kill; arguments: `FOLDER CASE…`.

This is a script, because a process can divide the CPU into devices only once. It prints one line of
JSON per case: checksums of the files that must be equal, and the metrics.
"""

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from harness.compute.strategy import import_tensorflow, make_strategy, one_device, parse_devices
from harness.job.job_file import load_job
from harness.job.keys import OPTIMIZERS
from tests.conftest import JOBS

SETTINGS = [
    *("data.vocab_size=30", "data.maxlen=6", "data.validation_split=0.1", "model.units=4"),
    *("model.embedding_dim=4", "train.batch_size=16", "train.ema_momentum=0.9"),
    *("train.log_every_steps=3", "train.xla=off", "train.epochs=4"),
    "train.checkpoint_every_s=0.000001",
]
CASES = {
    # adamw, cosine schedule with warm-up, smoothed labels, class weights, callback with a state
    "parts": ("own/parts", ()),
    # a custom loss and optimizer
    "own": ("own/focal", ("train.learning_rate=0.01", "train.schedule=cosine")),
    "plateau": (
        "lstm",
        (
            *("train.reduce_lr_patience=1", "train.monitor=val_roc_auc", "train.optimizer=nadam"),
            *("train.warmup_epochs=0.5", "train.class_weights=balanced", "train.keep=val_log_loss"),
            *("train.learning_rate=0.02", "train.reduce_lr_factor=0.3"),
        ),
    ),
    "steps": (
        "lstm",
        (
            *("train.schedule=steps", "train.schedule_drops=[1, 2.5]", "train.optimizer=sgd"),
            *("train.optimizer_options={ momentum = 0.9, nesterov = true }",),
            *("train.early_stopping_patience=2", "train.monitor=val_loss"),
        ),
    ),
    **{
        name: ("lstm", (f"train.optimizer={name}", "train.optimizer_options.weight_decay=0.01"))
        for name in OPTIMIZERS
    },
    "half": (
        "lstm",
        (
            *("train.precision=float16", "train.clipnorm=1", "train.optimizer=adam"),
            *("train.steps_per_execution=2", "train.schedule=cosine", "train.learning_rate=0.01"),
        ),
    ),
}
KILLED_AT = 8  # the training is killed at its eighth check for a signal


def main(folder: Path, *names: str) -> None:
    """Train each case on one replica, on two, and with a kill; print the outcomes."""
    job = load_job(JOBS / "lstm.toml", SETTINGS)
    import_tensorflow(None, 1, job)
    two, one = make_strategy(parse_devices("cpu:2")), one_device()
    for name in names:
        found: dict[str, Any] = {"case": name}
        with contextlib.suppress(Killed):
            train_once(folder / name / "killed", name, two, killed_at=KILLED_AT)
        for run, strategy in (("one", one), ("two", two), ("killed", two)):
            train_once(folder / name / run, name, strategy)
            found[run] = outcome(folder / name / run)
        print(json.dumps(found))  # noqa: T201 - for the test


class Killed(BaseException):
    """Ends the training without a checkpoint."""


def train_once(folder: Path, name: str, strategy: Any, *, killed_at: int = 0) -> None:
    """Train or resume a run until it has finished, or until it is killed."""
    from harness.system.processes import StopRequest
    from tests.training.test_trainer import train_in

    class StopAt(StopRequest):
        num_checks = 0

        def check(self) -> None:
            self.num_checks += 1
            if self.num_checks == killed_at:
                raise Killed

    path, settings = CASES[name]
    job = load_job(JOBS / f"{path}.toml", [*SETTINGS, *settings])
    train_in(folder, job, strategy=strategy, stop=StopAt())


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
