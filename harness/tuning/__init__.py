"""Searches for hyperparameters with KerasTuner's oracles and many worker processes.

A trial trains one run per seed. The folder of a sweep contains everything that a command needs to
continue the sweep.
"""
