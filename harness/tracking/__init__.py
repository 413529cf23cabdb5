"""The folder of a run: files, heartbeat, provenance; `status`, `logs`, `cancel`, `reproduce`.

Commands read the folders first and ask Slurm second.
This package may import the modules of `harness` itself and the packages up to `slurm`.
"""
