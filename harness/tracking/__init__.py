"""Manages the folders of runs, for the commands `status`, `logs`, `cancel` and `reproduce`.

These commands read the folders of the runs first and then ask Slurm.
This package imports only the modules of `harness` itself, `system`, `job`, `data` and `slurm`.
"""
