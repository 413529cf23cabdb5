"""Writes and loads `model.keras`, the trained model in plain Keras.

Two models with the same network and the same weights have identical files. The harness itself
builds the network from the job, then loads the file's weights. If Keras can't serialize the
configuration of a custom network, `model.keras` contains only the network's weights.
"""

import json
import re
import uuid
import zipfile
from pathlib import Path
from typing import BinaryIO

import keras

from harness.compute.network import load_network
from harness.data.dataset import num_outputs
from harness.tracking.run_dir import RunDirectory

# `save_model` gives each file in the archive this date, the earliest that a zip archive can store.
# Keras would write the current time, and two files of the same model would then differ.
EPOCH = (1980, 1, 1, 0, 0, 0)


def save_model(run: RunDirectory, model: keras.Model) -> None:
    """Write the run's `model.keras`.

    Keras 3 can load the file if it contains the network, not only the weights.

    Raises:
        RunError: if the file can't be written, or a newer process took over the run.
    """

    def save(file: BinaryIO) -> None:
        # The temporary file is in the run's folder, because TMPDIR may be small. `take_lease`
        # removes the files of a killed process.
        path = run.path(f".{uuid.uuid4().hex}.tmp.keras")
        try:
            members = _members(model, path)
        finally:
            for leftover in run.folder.glob(f"{path.stem}*"):
                leftover.unlink(missing_ok=True)
        metadata = json.loads(members["metadata.json"])
        metadata["date_saved"] = "1980-01-01@00:00:00"
        members["metadata.json"] = json.dumps(metadata).encode()
        members["config.json"] = _number_shared_objects(members["config.json"].decode()).encode()
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(members):
                archive.writestr(zipfile.ZipInfo(name, EPOCH), members[name])

    run.write("model.keras", save)


def _members(model: keras.Model, path: Path) -> dict[str, bytes]:
    """Return the content of each file in Keras's archive of a model, by the file's name."""
    try:
        model.save(path)
    except (OSError, MemoryError):
        raise
    except Exception:  # noqa: S110 - `get_config` of a custom class may raise any error
        pass
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        # Each process stores a lambda differently, and Keras's safe mode refuses to load a lambda.
        if b'"__lambda__"' not in members["config.json"]:
            return members
    # Save only the weights: the model's class is custom and has no configuration, or the model
    # contains a lambda.
    weights = path.with_suffix(".weights.h5")
    model.save_weights(weights)
    return {
        "metadata.json": json.dumps({"keras_version": keras.__version__}).encode(),
        "config.json": json.dumps({"class_name": type(model).__name__}).encode(),
        "model.weights.h5": weights.read_bytes(),
    }


def _number_shared_objects(config: str) -> str:
    # If layers share an object, Keras writes the object's address in memory, which differs between
    # processes. Replace the addresses with numbers: 0, 1, …
    numbers: dict[str, int] = {}
    return re.sub(
        r'("shared_object_id": )(\d+)',
        lambda match: f"{match[1]}{numbers.setdefault(match[2], len(numbers))}",
        config,
    )


def load_model(run: RunDirectory) -> keras.Model:
    """Load the model of a finished run.

    Raises:
        InputError: if the run is unfinished, or its model is missing or broken.
    """
    path = run.model_file()
    return load_network(run.job(), path, num_outputs(run.result()["classes"]))
