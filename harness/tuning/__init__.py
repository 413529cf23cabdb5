"""Searches for hyperparameters with KerasTuner's oracles and many worker processes.

A trial trains one run per seed. A sweep's folder contains all that is needed to continue the sweep.
This package may import the modules of `harness` itself and the packages up to `report`, in the
order of `harness/README.md`.
"""
