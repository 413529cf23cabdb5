"""Searches for hyperparameters with KerasTuner's oracles and many worker processes.

A trial is one run per seed. The sweep's folder contains all that is needed to continue the search.
It may import the modules of `harness` itself and the packages up to `report`.
"""
