"""A run's folder: its one writer, its heartbeat, its provenance, and how others read it.

The only place that knows the files of a run's folder by name and what they hold.
It may import the modules of `harness` itself and the packages up to `slurm`.
"""
