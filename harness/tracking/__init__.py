"""Manages the folders of runs, for the commands `status`, `logs`, `cancel` and `reproduce`.

The commands read the folders of the runs first and then ask Slurm.
"""
