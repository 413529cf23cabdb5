"""Watching runs from afar: status, logs and cancel.

Everything here reads run folders first and asks Slurm second; nothing here trains.
It may import the modules of `harness` itself and the packages up to `tracking`.
"""
