"""Searches for hyperparameters with KerasTuner's oracles and many worker processes.

A trial trains one run per seed. A sweep's folder contains everything that continues the sweep.
"""
