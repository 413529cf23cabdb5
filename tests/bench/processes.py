"""The processes that the benchmarks measure, and the order in which they run.

Each process is started as a user starts it. The ways of a comparison take turns (A B, B A, …), so
that other work on the machine affects all of them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.compute.strategy import parse_devices, site_devices
from harness.data.sources import open_dataset
from harness.errors import RunError
from harness.job.job_file import load_job
from harness.slurm.environment import visible_gpus
from harness.system.console import Console
from harness.tracking.run_dir import RunDirectory
from tests import child
from tests.child import Ended

Arg = str | Path
Way = Callable[[], dict[str, float]]  # measures once; returns the value of each quantity


@dataclass(frozen=True)
class Settings:
    """The networks to train, and the size of the measurements."""

    architectures: tuple[str, ...]
    pairs: int  # turns of each comparison; if even, each way comes first equally often
    reviews: int  # per split; training on a few thousand reviews takes less than a second
    epochs: int  # per run; the first epoch is not measured
    data: Path | None


def is_for_cpu() -> bool:
    """Whether HARNESS_DEVICES makes runs use the CPU, even if there are GPUs."""
    named = site_devices()
    return named is not None and parse_devices(named).kind == "cpu"


def one_gpu() -> list[str]:
    """Return the options that limit a run to one GPU, because the notebook uses one."""
    return ["--devices", "gpu:1"] if visible_gpus() > 1 and not is_for_cpu() else []


@dataclass
class Bench:
    """Measures processes that write into one folder."""

    settings: Settings
    folder: Path
    console: Console
    num_runs: int = field(default=0)

    def harness(self, *args: Arg, **variables: str) -> Ended:
        """Run a harness command to its end.

        Raises:
            RunError: if the command fails; the message contains the command's last line.
        """
        command = [*child.module_args("harness"), *args]
        ended = child.run_process(command, timeout_s=child.NO_LIMIT_S, **variables)
        if ended.code != 0:
            raise RunError(f"harness {args[0]} {args[1]} {ended}")
        return ended

    def train(self, job: Path, *args: Arg, **variables: str) -> tuple[Ended, RunDirectory]:
        """Train a run of the size in `settings`."""
        self.num_runs += 1
        run_id, runs, size = f"run{self.num_runs}", self.folder / "runs", self.settings
        data: list[Arg] = ["--data", size.data] if size.data else []
        limits = ["--set", f"data.limit={size.reviews}", "--set", f"train.epochs={size.epochs}"]
        words = ["--run-id", run_id, "--runs", runs, *data, *limits, *args]
        ended = self.harness("train", job, *words, **variables)
        return ended, RunDirectory(runs / load_job(job).name / run_id)

    def baseline(self, way: str, architecture: str) -> tuple[Ended, dict[str, float]]:
        """Train with `tests.bench.baselines`; `way` is `notebook` or `torch`."""
        request = {
            "way": way,
            "architecture": architecture,
            "limit": self.settings.reviews,
            "epochs": self.settings.epochs,
            "data": self.keras_file() if way == "notebook" else self.settings.data,
        }
        variables = {"TF_CPP_MIN_LOG_LEVEL": "3"}
        variables |= {"CUDA_VISIBLE_DEVICES": ""} if is_for_cpu() else {}
        message = json.dumps(request, default=str)  # `str` converts paths
        ended = child.run_module(
            "tests.bench.baselines", message, timeout_s=child.NO_LIMIT_S, **variables
        )
        if ended.code != 0:
            raise RunError(f"{way} {architecture} {ended}")
        return ended, json.loads(ended.output.splitlines()[-1])

    def keras_file(self) -> Path:
        """Return the dataset as a file in the format of Keras's `imdb.npz`; write it if missing.

        Keras checks the file's checksum and would download its own file; `load` prevents this.
        """
        path = self.folder / "imdb.npz"
        if not path.exists():
            dataset = open_dataset(self.settings.data)
            arrays: dict[str, Any] = {}
            # Keras shuffles reviews when it loads them, so they are stored in the inverse order.
            generator = np.random.RandomState(113)  # the seed of `load_data`
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
        """Measure every way `pairs` times, in alternating order.

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
