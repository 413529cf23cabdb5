"""A run's folder: its one writer, its heartbeat, its provenance, and how others read and stop it.

The only place that knows the files of a run's folder by name and what they hold. `status`, `logs`
and `cancel` read folders first and ask Slurm second.
It may import the modules of `harness` itself and the packages up to `slurm`.
"""
