"""One run: the loop and its actions, checkpoints, metrics, and the TensorBoard log.

`launch` makes what a run needs, `train` reads top to bottom like the notebook, `trainer` loops.
It may import the modules of `harness` itself and the packages up to `inference`.
"""
