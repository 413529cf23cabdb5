"""Computes training steps and evaluations: devices, strategy, execution plan and networks.

Only this package creates a `tf.distribute` strategy.
It may import the modules of `harness` itself and the packages up to `board`.
"""
