"""Train the notebook's recurrent sentiment models on any devices, under Slurm or without it."""

from pathlib import Path

# The folder of the checkout, or of the snapshot, that this code is in.
PROJECT = Path(__file__).resolve().parent.parent
__version__ = "0.2.0"
