"""Files and folders: written whole, held by one writer, read leniently, and where they are kept.

A module here knows nothing of runs, Slurm or TensorFlow.
It may import the modules of `harness` itself, and no other package.
"""
