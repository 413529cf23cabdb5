"""`python -m tests.bench`: benchmarks of the harness on this machine.

`training` compares the harness with the code of the teaching notebook, and with `torch.nn` if
PyTorch is installed. `scale` measures how the costs of `status`, `prune`, `compare` and
`tensorboard` grow with the number of runs. The last line and the JSON file name the machine,
because figures of two machines can't be compared.
"""

import argparse
import logging
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from harness.architectures import ARCHITECTURES
from harness.data.sources import open_dataset
from harness.errors import InputError, RunError
from harness.slurm.environment import SlurmEnvironment, given_cpus, visible_gpus
from harness.system.console import Console, echo, log
from harness.system.files import scratch_directory
from harness.system.processes import installed_version, processor
from harness.tracking.provenance import PACKAGES
from tests.bench.measured import Measured, print_table, write_record
from tests.bench.processes import Bench, Settings
from tests.bench.scale import scale
from tests.bench.training import training

SECTIONS: dict[str, Callable[[Bench], Iterator[Measured]]] = {"training": training, "scale": scale}


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return the exit code: 0 = done, 1 = failed, 2 = refused."""
    options = parse(words)
    console = Console()
    try:
        return _measure(options, console)
    except (InputError, RunError) as error:
        log(logging.ERROR, str(error))
        return error.exit_code


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; on a mistake, print a message and end the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    help_text = "training or scale; default: both"
    parser.add_argument("sections", nargs="*", choices=SECTIONS, help=help_text)
    parser.add_argument("--architecture", nargs="+", choices=ARCHITECTURES, help="default: all")
    parser.add_argument("--pairs", type=int, default=4, help="repetitions of each comparison")
    parser.add_argument("--reviews", type=int, default=10_000, help="reviews from each split")
    parser.add_argument("--epochs", type=int, default=2, help="epochs; the first is not measured")
    parser.add_argument("--data", type=Path, help="folder with imdb.npz")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values to FILE")
    options = parser.parse_args(words)
    for name, least in (("pairs", 1), ("reviews", 200), ("epochs", 2)):
        if (value := getattr(options, name)) < least:
            parser.error(f"--{name} {value}: should be at least {least}")
    return options


def _measure(options: argparse.Namespace, console: Console) -> int:
    data = options.data.absolute() if options.data else None
    dataset = open_dataset(data)
    if dataset.folder and not dataset.is_sample:
        data = dataset.folder.absolute()  # some processes have another cache
    names = tuple(options.architecture or ARCHITECTURES)
    settings = Settings(names, options.pairs, options.reviews, options.epochs, data)
    about = {
        "machine": machine(),
        "settings": {k: v for k, v in asdict(settings).items() if k != "data"},
        "data": {"is_sample": dataset.is_sample, "checksum": dataset.checksum},
    }
    results: list[Measured] = []
    try:
        with scratch_directory() as folder:
            bench = Bench(settings, folder, console)
            for name in options.sections or SECTIONS:
                for each in SECTIONS[name](bench):
                    results.append(each)
                    if options.json:
                        write_record(options.json, about, results)
    finally:
        if results:  # show them after an interruption, too
            print_table(results)
    this = about["machine"]
    cpus, gpus = this["cpus"], this["gpus"]
    echo(f"measured on {cpus} CPUs of {this['processor']}, {gpus} GPUs; data: {dataset.title}")
    return 0


def machine() -> dict[str, Any]:
    """Return the processor, CPUs, memory, GPUs and versions of this machine."""
    return {
        "processor": processor(),
        "cpus": given_cpus(SlurmEnvironment.from_environment()),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": visible_gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in (*PACKAGES, "torch")},
    }


if __name__ == "__main__":
    sys.exit(main())
