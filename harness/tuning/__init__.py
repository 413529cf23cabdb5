"""Searches for hyperparameters with KerasTuner's oracles and many worker processes.

A trial trains one run per seed. A sweep is one execution of a search. The folder of a sweep
contains everything that `harness resume` needs to continue the sweep.
"""
