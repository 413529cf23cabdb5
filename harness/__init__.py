"""Train the notebook's recurrent sentiment models on any devices, under Slurm or without it."""

__version__ = "0.1.0"
