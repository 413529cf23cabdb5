"""`train --from RUN`: begins a new run with the checkpoint or weights of another run, its parent.

The new run is compared with its parent: the settings that affect a result, the custom code and the
data. `train.epochs` is compared only if the learning-rate schedule depends on it, or if the job has
custom callbacks, which receive it. If the comparison finds no difference, the new run continues
from the parent's checkpoint, and the new run's result is bitwise identical to the result of a run
that trained all epochs itself. If the comparison finds a difference, the new run begins with the
weights of the parent's trained model, layer by layer. Before its first step, the new run writes a
checkpoint of its own, and then no longer needs the parent.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.job.job_file import shown
from harness.job.keys import DECAYS, Job
from harness.system.files import read_plain_file
from harness.system.lenient_json import read_json_lines, table, text
from harness.tracking.run_dir import RECORD, RunDirectory, first_start, weights_of
from harness.training.context import RunContext

if TYPE_CHECKING:
    import keras

    from harness.compute.train_step import TrainStep


@dataclass(frozen=True)
class Parent:
    """A run that provides the first checkpoint or the first weights of a new run."""

    run: RunDirectory
    continues: bool  # whether the new run uses the parent's checkpoint, not only its weights
    differences: tuple[str, ...] = ()  # settings and data that differ between parent and new run

    def record(self) -> dict[str, Any]:
        """Return the part of the new run's record that describes the parent."""
        record = {
            "run": str(self.run.folder.absolute()),
            "begins_with": "checkpoint" if self.continues else "weights",
        }
        # If the parent itself began with the weights of another run, name that run too.
        if self.continues and (origin := weights_of(self.run.certain_json(RECORD))):
            record["weights_of"] = origin
        return record

    def describe(self) -> str:
        """Say in one line how the new run begins."""
        if self.continues:
            return (
                f"continues run {self.run.folder}; the result is the same as after training from "
                "the start"
            )
        shown = ", ".join(self.differences)
        start = f"begins with the weights of run {self.run.folder}"
        return f"{start}, because these settings differ: {shown}"


def recorded_parent(run: RunDirectory, named: Path | None) -> str | None:
    """Return the folder of the parent in a run's record; None if there is none.

    Raises:
        InputError: if the run began with another parent than the folder `named` in `--from`.
    """
    record = run.certain_json(RECORD)
    before = text(table(first_start(record), "parent").get("run"))
    if record and named and before != str(named.absolute()):
        raise InputError(
            f"--from {named}: run {run.folder} exists already, and began with "
            f"{before or 'no parent'}; leave --from out, or choose another --run-id"
        )
    return before


def find_parent(context: RunContext, *, named: Path | None) -> Parent | None:
    """Find a run's parent. Return None if no parent is named, or the run already has a checkpoint.

    Args:
        named: the folder in `--from`; by default the parent in the run's record.

    Raises:
        InputError: if the run can't begin with its parent's checkpoint or weights.
    """
    run = context.run
    before = recorded_parent(run, named)
    if run.checkpoints():
        return None
    if not (folder := named or (Path(before) if before else None)):
        return None
    parent = RunDirectory.open(folder)
    job = parent.job()
    differences = tuple(_differences(parent, job, context))
    if differences:
        parent.model_file()
        if "data.bucket" in differences and job.model.architecture == "bilstm":
            raise InputError(
                f"--from {parent.folder}: a bilstm with data.bucket has other layers than a bilstm "
                f"without data.bucket; set data.bucket = {shown(job.data.bucket)} as in that run"
            )
        return Parent(parent, continues=False, differences=differences)
    if not parent.checkpoints():
        raise InputError(
            f"--from {parent.folder}: the checkpoint of this run is gone, so no other run can "
            "continue the training; train the job without --from"
        )
    trained, epochs = len(read_json_lines(parent.path("metrics.jsonl"))), context.job.train.epochs
    if parent.finished() and trained > epochs:
        raise InputError(
            f"--from {parent.folder}: this run has trained {trained} epochs, and the new run has "
            f"train.epochs = {epochs}; set train.epochs to {trained} or more"
        )
    return Parent(parent, continues=True)


def _differences(parent: RunDirectory, other: Job, context: RunContext) -> Iterator[str]:
    """Yield the settings and data in which the new run differs from its parent.

    Settings that don't affect a result are left out. `train.epochs` is left out too, unless the
    learning-rate schedule or custom callbacks depend on it.
    """
    job, vectors = context.job, context.vectors
    yield from (key for key in job.changes(other) if key != "train.epochs")
    for path in dict.fromkeys([*job.code, *other.code]):
        if job.code.get(path) != other.code.get(path):
            yield f"code.{path}"
    train = job.train
    if other.train.epochs != train.epochs:
        if train.schedule in DECAYS and not train.schedule_epochs:
            yield "train.schedule_epochs (0 stands for train.epochs)"
        if train.callbacks:
            yield "train.epochs (passed to train.callbacks)"
    record = parent.certain_json(RECORD)
    if table(record, "dataset").get("checksum") != context.dataset.checksum:
        yield "the data"
    if first_start(record).get("embeddings") != (vectors.checksum if vectors else None):
        yield "the vectors of model.embeddings"


def begin_with(parent: Parent, context: RunContext, train_step: "TrainStep") -> list[str]:
    """Make the first checkpoint of a new run from its parent.

    Args:
        context: the new run. This process must hold the run's lease (its lock), and must have
            written the run's `vocabulary.txt`.
        train_step: the new run's models and optimizer, newly initialized.

    Returns:
        A warning for each layer that doesn't begin with the parent's weights.

    Raises:
        InputError: if the parent's checkpoints are broken, or no layer of the parent's model fits
            the job.
        DiskError: if the disk can't be read; the parent's checkpoints may be intact.
    """
    from harness.training import checkpoint

    epochs = context.job.train.epochs
    if parent.continues:
        # If a user edited the parent's job.toml after its training, `adopt` finds no checkpoint
        # with this identity.
        theirs = replace(context, run=parent.run, job=parent.run.job()).identity
        if checkpoint.adopt(
            parent.run,
            context.run,
            context.identity,
            source_identity=theirs,
            max_epochs=epochs,
        ):
            return []
        raise InputError(
            f"--from {parent.run.folder}: no checkpoint of this run can be used: the checkpoints "
            "are broken, do not match the run's job.toml, or have more epochs than the new run's "
            f"train.epochs = {epochs}; restore the old job.toml, or train a new run with more "
            "epochs or without --from"
        )
    lines = list(_take_weights(parent.run, context, train_step))
    progress = checkpoint.Progress(identity=context.identity)
    checkpoint.save(context.run, train_step, progress, total_steps=0)
    return lines


def _take_weights(
    parent: RunDirectory, context: RunContext, train_step: "TrainStep"
) -> Iterator[str]:
    from keras.layers import Embedding

    from harness.compute.network import embedding_of_words
    from harness.compute.optimizer import build_optimizer
    from harness.inference.model_file import load_model

    theirs = dict(_numbered(load_model(parent)))
    vectors = context.vectors
    words = read_plain_file(context.run.path("vocabulary.txt"))
    their_words = read_plain_file(parent.path("vocabulary.txt"))
    pretrained = None
    # If the parent and the new run use the same vectors, take the parent's embedding, because the
    # parent may have trained the vectors.
    if vectors and first_start(parent.certain_json(RECORD)).get("embeddings") != vectors.checksum:
        pretrained = embedding_of_words(train_step.export_model, context.job)
    taken = 0
    for name, layer in _numbered(train_step.export_model):
        weights = theirs[name].get_weights() if name in theirs else []
        shapes = [tuple(each.shape) for each in layer.weights]
        others = [each.shape for each in weights]
        if layer is pretrained:
            yield (
                f"{name}: starts with the vectors of model.embeddings, not with the weights of run "
                f"{parent.folder}, which used other vectors or none"
            )
        elif shapes != others:
            theirs_are = f"run {parent.folder} has no such layer"
            if others:
                theirs_are = f"its weights in run {parent.folder} have shape {others}"
            yield f"{name}: starts from random weights of shape {shapes}, because {theirs_are}"
        elif words != their_words and any(
            isinstance(each, Embedding) for each in layer._flatten_layers()
        ):
            yield (
                f"{name}: starts from random weights, because run {parent.folder} has another "
                "vocabulary"
            )
        else:
            layer.set_weights(weights)
            taken += 1
    if not taken:
        raise InputError(
            f"--from {parent.folder}: no layer of this run's model fits the new job; train a new "
            "run without --from"
        )
    train_step.model.set_weights(train_step.export_model.get_weights())
    # Build the optimizer's variables again, because some may be copies of the weights, as in
    # ScheduleFreeAdamW.
    # Not in the strategy's scope: there, the chief would wait for the other workers' variables.
    optimizer = build_optimizer(context.job.train, code=context.job.code)
    optimizer.build(train_step.model.trainable_variables)
    for variable, built in zip(train_step.optimizer.variables, optimizer.variables, strict=True):
        variable.assign(built.numpy())


def _numbered(model: "keras.Model") -> Iterator[tuple[str, "keras.Layer"]]:
    """Yield the layers that have weights, with names that are the same in all runs.

    Keras's own names are not used, because Keras may give a layer different names in two runs.
    """
    counts = Counter[str]()
    for layer in model.layers:
        if layer.weights:
            kind = type(layer).__name__
            counts[kind] += 1
            yield f"{kind} {counts[kind]}", layer
