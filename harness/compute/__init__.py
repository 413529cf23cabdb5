"""The computation of training steps and evaluations: devices, strategy, execution plan, networks.

Only this package names a `tf.distribute` strategy.
It may import the modules of `harness` itself and the packages up to `board`.
"""
