"""Slurm: its environment, its client programs, submission, slots and processes, several nodes.

No other package reads Slurm's variables.
It may import the modules of `harness` itself and the packages up to `data`.
"""
