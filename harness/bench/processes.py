"""The processes that a bench measures, and the turns that they take.

Every process is started as a user starts it, and the ways to be compared take turns (A B, B A,
…), so that a busy moment of the machine meets all of them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness import PROJECT
from harness.data.imdb_sources import open_dataset
from harness.data.vocabulary import encode_split
from harness.errors import RunError
from harness.job_file import load_job
from harness.system.console import Console
from harness.tracking.run_dir import RunDirectory


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long."""

    architectures: tuple[str, ...]
    pairs: int  # turns of each comparison; even, so that each way is first as often
    reviews: int  # of each split; a few thousand are trained within a second
    epochs: int  # of which the last is measured
    data: Path | None
    jobs: tuple[Path, ...]  # whose plans are measured; empty = the steady ones


@dataclass(frozen=True)
class Ended:
    """A process that ended well."""

    wall_s: float
    peak_memory_gb: float  # of the process alone, not of its children
    said: str


@dataclass
class Bench:
    """Measures, in a folder of its own."""

    settings: Settings
    folder: Path
    console: Console
    num_runs: int = field(default=0)

    # Processes

    def process(self, words: Sequence[str | Path], **variables: str) -> Ended:
        """Run a command to its end.

        Raises:
            RunError: if it fails, with its last words.
        """
        log = self.folder / "said.txt"
        began = time.perf_counter()
        with log.open("wb") as out:
            child = subprocess.Popen(  # noqa: S603 - a list of words, no shell
                [str(word) for word in words],
                env=self.environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            try:
                _, status, usage = os.wait4(child.pid, 0)
            except BaseException:
                child.kill()
                child.wait()
                raise
        child.returncode = os.waitstatus_to_exitcode(status)
        said = log.read_text(errors="replace")
        if child.returncode != 0:
            last = ([line for line in said.splitlines() if line.strip()] or ["it said nothing"])[-1]
            raise RunError(
                f"{' '.join(map(str, words[:6]))} ended with {child.returncode}: {last[:300]}"
            )
        return Ended(time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9, said)

    @staticmethod
    def environment(**variables: str) -> dict[str, str]:
        """This process's, with this code before any other, and no download to be measured."""
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH", ""))))
        return {**os.environ, "PYTHONPATH": path, "HARNESS_OFFLINE": "1", **variables}

    def harness(self, *words: str | Path, **variables: str) -> Ended:
        """Run a command of ours."""
        return self.process([sys.executable, "-m", "harness", *words], **variables)

    def train_words(self, job: Path, run_id: str, *more: str | Path) -> list[str | Path]:
        """The words of a run of the measured size."""
        return ["train", job, "--run-id", run_id, *self.size_words(), *more]

    def size_words(self) -> list[str | Path]:
        """The words of what is measured: where, on which data, how much of them."""
        words: list[str | Path] = ["--runs", self.folder / "runs"]
        words += ["--data", self.settings.data] if self.settings.data else []
        words += ["--set", f"data.limit={self.settings.reviews}"]
        return [*words, "--set", f"train.epochs={self.settings.epochs}"]

    def train(self, job: Path, *words: str | Path, **variables: str) -> tuple[Ended, RunDirectory]:
        """Train a run of the measured size."""
        self.num_runs += 1
        run_id = f"run{self.num_runs}"
        ended = self.harness(*self.train_words(job, run_id, *words), **variables)
        return ended, RunDirectory(self.folder / "runs" / load_job(job).name / run_id)

    def baseline(
        self, way: str, architecture: str, **more: object
    ) -> tuple[Ended, dict[str, float]]:
        """Train what a user would write instead."""
        request = {
            "way": way,
            "architecture": architecture,
            "limit": self.settings.reviews,
            "epochs": self.settings.epochs,
            "keras_file": str(self.keras_file()),
            "more": more,
        }
        ended = self.process(
            [sys.executable, "-m", "harness.bench.baselines", json.dumps(request)],
            TF_CPP_MIN_LOG_LEVEL="3",
        )
        return ended, json.loads(ended.said.splitlines()[-1])

    def keras_file(self) -> Path:
        """The dataset as Keras ships it.

        Written here from our own arrays: Keras unpickles it, and would replace a file that it does
        not know by a download.
        """
        path = self.folder / "imdb.npz"
        if not path.exists():
            dataset = open_dataset(self.settings.data)
            arrays: dict[str, Any] = {}
            for name, split in (("train", dataset.train), ("test", dataset.test)):
                tokens, offsets = encode_split(split, len(dataset.vocab) + 4)
                reviews = np.empty(len(split), object)
                reviews[:] = [r.tolist() for r in np.split(tokens, offsets[1:-1])]
                arrays |= {f"x_{name}": reviews, f"y_{name}": split.labels.astype(np.int64)}
            np.savez(path, **arrays)
        return path

    def in_turn(
        self, name: str, ways: Mapping[str, Callable[[], dict[str, float]]]
    ) -> dict[str, dict[str, tuple[float, ...]]]:
        """Measure all ways `pairs` times, each time in the other order.

        Returns:
            By quantity and way, the values in the order of the turns.
        """
        got: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for turn in range(self.settings.pairs):
            for way in list(ways) if turn % 2 == 0 else reversed(list(ways)):
                self.console.info(f"{name}: {way}, {turn + 1} of {self.settings.pairs}")
                got[way].append(ways[way]())
        quantities = next(iter(got.values()))[0]
        return {
            quantity: {way: tuple(each[quantity] for each in got[way]) for way in ways}
            for quantity in quantities
        }
