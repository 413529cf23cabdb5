"""One run: the loop and its actions, checkpoints, metrics, and the TensorBoard log.

`launch` opens the data and the devices. `train` shows a run from top to bottom, like the notebook.
`trainer` contains the training loop. This package may import the modules directly in `harness` and
the packages up to `inference`.
"""
