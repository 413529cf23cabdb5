"""Flips one bit during the training of a run, or in a file of a finished run."""

import io
import json
import math
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from harness.system.files import sha256_of
from harness.tracking.run_dir import CHECKSUMS
from tests.conftest import PROJECT, Harness, metrics

# This code, appended to a copy of harness/compute/train_step.py, flips one bit of a gradient.
HOOK = """

def _with_flip(self, batch, gradients_of=TrainStep.gradients):
    gradients, sums = gradients_of(self, batch)
    gradient = gradients[{variable}]
    size = tf.size(gradient)
    mask = tf.scatter_nd([[{element} % size]], [tf.constant({mask}, tf.int32)], [size])
    mask = tf.where(tf.cast(batch.step, tf.int64) == {step}, mask, 0)
    bits = tf.bitcast(gradient, tf.int32)
    flipped = tf.bitwise.bitwise_xor(bits, tf.reshape(mask, tf.shape(bits)))
    gradients[{variable}] = tf.bitcast(flipped, tf.float32)
    return gradients, sums


TrainStep.gradients = _with_flip
"""


def change_json(path: Path, *removed: str, **values: Any) -> None:
    """Change values in a JSON file, and remove others."""
    content = json.loads(path.read_text()) | values
    kept = {key: value for key, value in content.items() if key not in removed}
    path.write_text(json.dumps(kept, indent=2) + "\n")


def write_checksums(run: Path) -> None:
    """Update the checksums in `result.json`, so that they match the changed files."""
    files = {key: run / name for name, key in CHECKSUMS.items() if (run / name).exists()}
    change_json(run / "result.json", **{key: sha256_of(path) for key, path in files.items()})


def flip_array(array: np.ndarray, chance: random.Random, lowest: int = 0) -> None:
    """Flip the sign, or a mantissa bit not below bit `lowest`, of a random float32 of the array."""
    bits = array.reshape(-1).view(np.uint32)
    bits[chance.randrange(len(bits))] ^= np.uint32(1 << chance.choice([*range(lowest, 23), 31]))


def in_metrics(run: Path, chance: random.Random) -> str:
    """Raise a loss or accuracy of an epoch to the next float; return the epoch and the key."""
    lines = metrics(run)
    line = chance.choice(lines)
    key = chance.choice(["loss", "accuracy", "val_loss", "val_accuracy"])
    line[key] = math.nextafter(line[key], math.inf)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_checksums(run)
    return f"epoch {line['epoch']}, {key}"


def in_predictions(run: Path, chance: random.Random) -> str:
    """Flip a bit of a predicted probability, and return the name of its file."""
    name = chance.choice(["predictions.npz", "validation_predictions.npz"])
    with np.load(run / name) as arrays:
        content = {key: arrays[key].copy() for key in arrays.files}
    flip_array(content["probabilities"], chance)
    with (run / name).open("wb") as file:
        np.savez(file, **content)
    write_checksums(run)
    return name


def in_model(run: Path, chance: random.Random) -> str:
    """Flip a bit of a weight in `model.keras`, and return the name of the weight."""
    path = run / "model.keras"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(members["model.weights.h5"])
    names: list[str] = []
    with h5py.File(weights, "r+") as file:
        file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
        name = chance.choice(names)
        content = file[name][()]
        # On some processors, a flip of a lower bit changes no prediction.
        flip_array(content, chance, lowest=16)
        file[name][...] = content
    members["model.weights.h5"] = weights.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for member in sorted(members):
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), members[member])
    write_checksums(run)
    return name


def in_vocabulary(run: Path, chance: random.Random) -> str:
    """Flip a bit in `vocabulary.txt`, and return the position of its byte."""
    content = bytearray((run / "vocabulary.txt").read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(3)
    (run / "vocabulary.txt").write_bytes(content)
    write_checksums(run)
    return f"byte {place}"


def in_scores(run: Path, chance: random.Random) -> str:
    """Raise a score in `result.json` to the next float; return the name of the score."""
    key = chance.choice(["accuracy", "f1", "roc_auc", "log_loss", "val_loss", "recall"])
    value = json.loads((run / "result.json").read_text())[key]
    change_json(run / "result.json", **{key: math.nextafter(value, math.inf)})
    return key


PLACES: dict[str, Callable[[Path, random.Random], str]] = {
    "metrics": in_metrics,
    "predictions": in_predictions,
    "model": in_model,
    "vocabulary": in_vocabulary,
    "scores": in_scores,
}


def train_with_flip(harness: Harness, job: str, run_id: str, chance: random.Random) -> str:
    """Train a run with a copy of the package that flips a bit of a gradient; return the place.

    Commands import the package from their working folder if the folder contains it.
    """
    copy = harness.folder / "harness"
    shutil.copytree(PROJECT / "harness", copy)
    # The embedding is excluded: words that are not in the batch have a gradient of 0, and 0 with a
    # flipped bit is too small to change a weight.
    where = {
        "variable": chance.choice([-1, -2, -3, -4]),
        "element": chance.randrange(1000),
        "mask": 1 << chance.randrange(12, 25),
        "step": chance.randrange(2, 43),  # the run has 45 steps
    }
    with (copy / "compute/train_step.py").open("a") as file:
        file.write(HOOK.format(**where))
    harness.trained(job, run_id)
    shutil.rmtree(copy)
    return f"step {where['step']}, variable {where['variable']}, mask {where['mask']:#x}"
