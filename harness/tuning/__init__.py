"""Searches for hyperparameters with KerasTuner's oracles and many worker processes.

A trial trains one run per seed. Any command can continue a sweep from the sweep's folder alone.
"""
