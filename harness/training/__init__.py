"""One run: the loop, checkpoints, metrics, and the TensorBoard log.

`launch` loads the data and sets up the devices. `train` contains the whole course of a run, from
data to result. `trainer` contains the training loop.
"""
