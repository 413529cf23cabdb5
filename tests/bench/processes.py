"""The processes that are measured, and the order in which they take turns.

Each process is started as a user starts it. The ways to be compared take turns (A B, B A, …), so
that a busy moment of the machine affects all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.compute.strategy import parse_devices, site_devices
from harness.data.sources import open_dataset
from harness.doctor import child
from harness.doctor.child import Ended
from harness.errors import RunError
from harness.job.job_file import load_job
from harness.slurm.environment import visible_gpus
from harness.system.console import Console
from harness.tracking.run_dir import RunDirectory
from tests import asked_child

Arg = str | Path
Way = Callable[[], dict[str, float]]  # measures once, and gives each quantity's value


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long."""

    architectures: tuple[str, ...]
    pairs: int  # turns of each comparison; even, so that each way is first as often
    reviews: int  # of each split; a few thousand are trained within a second
    epochs: int  # of which those after the first are measured
    data: Path | None


def is_for_cpu() -> bool:
    """Whether HARNESS_DEVICES has runs use the CPU, where there may be GPUs."""
    named = site_devices()
    return named is not None and parse_devices(named).kind == "cpu"


def one_gpu() -> list[str]:
    """The arguments with which a run uses no more GPUs than the notebook: one of several."""
    return ["--devices", "gpu:1"] if visible_gpus() > 1 and not is_for_cpu() else []


@dataclass
class Bench:
    """Measures, in a folder of its own."""

    settings: Settings
    folder: Path
    console: Console
    num_runs: int = field(default=0)

    # Processes

    def process(self, args: Sequence[Arg], **variables: str) -> Ended:
        """Run a command to its end.

        Raises:
            RunError: if it fails, with the last line that it printed.
        """
        ended = child.run_process(args, timeout_s=child.NO_LIMIT_S, **variables)
        if ended.code != 0:
            raise RunError(f"{' '.join(map(str, args[:6]))} {ended}")
        return ended

    def harness(self, *args: Arg, **variables: str) -> Ended:
        """Run a harness command to its end.

        Raises:
            RunError: if it fails, with the last line that it printed.
        """
        return self.process([*child.module_args("harness"), *args], **variables)

    def train_args(self, job: Path, run_id: str, *more: Arg) -> list[Arg]:
        """The arguments that train a run of the measured size."""
        return ["train", job, "--run-id", run_id, *self.size_args(), *more]

    def size_args(self) -> list[Arg]:
        """The arguments for what is measured: where, on which data, and how much of them."""
        args: list[Arg] = ["--runs", self.folder / "runs"]
        args += ["--data", self.settings.data] if self.settings.data else []
        args += ["--set", f"data.limit={self.settings.reviews}"]
        return [*args, "--set", f"train.epochs={self.settings.epochs}"]

    def train(self, job: Path, *args: Arg, **variables: str) -> tuple[Ended, RunDirectory]:
        """Train a run of the measured size."""
        self.num_runs += 1
        run_id = f"run{self.num_runs}"
        ended = self.harness(*self.train_args(job, run_id, *args), **variables)
        return ended, RunDirectory(self.folder / "runs" / load_job(job).name / run_id)

    def baseline(self, way: str, architecture: str) -> tuple[Ended, dict[str, float]]:
        """Train what a user would write instead."""
        module = "tests.bench.baselines"
        request = {
            "do": way,
            "architecture": architecture,
            "limit": self.settings.reviews,
            "epochs": self.settings.epochs,
            "keras_file": str(self.keras_file()),
        }
        variables = {"TF_CPP_MIN_LOG_LEVEL": "3"}
        variables |= {"CUDA_VISIBLE_DEVICES": ""} if is_for_cpu() else {}
        try:
            answer, ended = asked_child.ask(
                module, request, timeout_s=child.NO_LIMIT_S, **variables
            )
        except child.ChildError as error:
            raise RunError(f"{way} {architecture} {error}") from None
        return ended, answer

    def keras_file(self) -> Path:
        """The dataset in the format that Keras ships, written from our own arrays.

        Keras unpickles such a file, and would replace one that it does not know by a download.
        """
        path = self.folder / "imdb.npz"
        if not path.exists():
            dataset = open_dataset(self.settings.data)
            arrays: dict[str, Any] = {}
            # Keras shuffles the reviews when it loads them, and encodes the ranks of their words.
            generator = np.random.RandomState(113)  # that of `load_data`
            for name, split in dataset.splits().items():
                order = np.arange(len(split))
                generator.shuffle(order)
                split = split.arranged(np.argsort(order))
                reviews = (each.tolist() for each in np.split(split.tokens, split.offsets[1:-1]))
                arrays[f"x_{name}"] = np.fromiter(reviews, object, len(split))
                arrays[f"y_{name}"] = split.labels.astype(np.int64)
            np.savez(path, **arrays)
        return path

    def in_turn(
        self, name: str, ways: Mapping[str, Way]
    ) -> dict[str, dict[str, tuple[float, ...]]]:
        """Measure all ways `pairs` times, in turns of alternating order.

        Returns:
            For each quantity and way, the values in the order of the turns.
        """
        measured: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for turn in range(self.settings.pairs):
            for way in list(ways) if turn % 2 == 0 else reversed(list(ways)):
                self.console.info(f"{name}: {way}, {turn + 1} of {self.settings.pairs}")
                measured[way].append(ways[way]())
        quantities = next(iter(measured.values()))[0]
        return {
            quantity: {way: tuple(each[quantity] for each in measured[way]) for way in ways}
            for quantity in quantities
        }
