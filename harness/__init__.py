"""Trains recurrent text classifiers on any devices, under Slurm or without it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import Comparison, Run, Runs, Sweep, audit, compare, load_runs, train, tune

__all__ = ["Comparison", "Run", "Runs", "Sweep", "audit", "compare", "load_runs", "train", "tune"]

# The folder of the checkout or of the snapshot that contains this code.
PROJECT = Path(__file__).resolve().parent.parent
__version__ = "0.3.0"


def __getattr__(name: str) -> Any:
    """Import `harness.api` only when one of its names is used; no command needs this module."""
    if name not in __all__:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    import harness.api

    return getattr(harness.api, name)
