"""Manages the folders of runs, for the commands `status`, `logs`, `cancel` and `reproduce`.

`status`, `logs` and `cancel` read the folders of the runs and call Slurm's `squeue`.
"""
