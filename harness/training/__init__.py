"""One run: the loop, checkpoints, metrics, and the TensorBoard log.

`launch` opens the data and sets up the devices, then calls `train`. `train` runs all phases of a
run, from reading the data to writing the result. `trainer` contains the training loop.
"""
