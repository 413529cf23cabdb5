"""Code for Slurm: its variables and programs, submission, worker slots, training on several nodes.

No other package reads Slurm's variables.
"""
