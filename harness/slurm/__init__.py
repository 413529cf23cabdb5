"""Code for Slurm: its variables and programs, submission, worker slots, training on several nodes.

No other package reads Slurm's variables.
This package imports only the modules of `harness` itself and the packages `system`, `job`, `data`.
"""
