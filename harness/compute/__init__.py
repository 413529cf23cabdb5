"""Builds networks and computes their training steps and evaluations on the run's devices.

Only this package creates a `tf.distribute` strategy.
"""
