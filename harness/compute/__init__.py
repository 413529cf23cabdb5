"""What computes a step: devices, strategy, execution plan, compiled steps, and the train step.

The only package that names a `tf.distribute` strategy.
It may import the modules of `harness` itself and the packages up to `board`.
"""
