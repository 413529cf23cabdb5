"""TensorBoard for one user: which runs it shows, its server behind a secret, the way to it.

It reads the folders of runs, and writes links and word vectors into a temporary folder of its own.
It may import the modules of `harness` itself and the packages up to `tracking`.
"""
