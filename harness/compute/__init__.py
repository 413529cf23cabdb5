"""Builds networks and computes their training steps and evaluations on the run's devices.

Only this package creates a `tf.distribute` strategy.
It may import modules directly in `harness`, and the packages above it in harness/README.md.
"""
