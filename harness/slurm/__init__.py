"""Code for Slurm: its variables and programs, submission, worker slots, training on several nodes.

No other package reads Slurm's variables.
This package may import the modules directly in `harness` and the packages up to `data`.
"""
