"""Slurm: its environment, its client programs, submission, process pools, and several nodes.

Everything that knows a Slurm variable or a Slurm program is here.
It may import the modules of `harness` itself and the packages up to `data`.
"""
