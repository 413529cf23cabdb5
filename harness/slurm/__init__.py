"""All that concerns Slurm: variables, client programs, submission, worker slots, several nodes.

No other package reads Slurm's variables.
This package may import the modules of `harness` itself and the packages up to `data`.
"""
