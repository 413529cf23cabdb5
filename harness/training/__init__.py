"""One run: the loop and its actions, checkpoints, metrics, and the TensorBoard log.

`launch` opens the data and the devices. `train` contains the whole course of a run, from data to
result. `trainer` contains the training loop.
"""
