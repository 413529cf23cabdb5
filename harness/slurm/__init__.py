"""Code for Slurm.

The package reads Slurm's environment variables, calls Slurm's programs, submits jobs, places
processes on nodes, GPUs and CPUs, and connects the processes that train one model on several nodes.
No other package reads Slurm's variables.
"""
