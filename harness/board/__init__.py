"""TensorBoard for one user: the runs that it shows, and its server behind a secret path.

It reads the folders of runs, and writes only links into a temporary folder.
It may import the modules of `harness` itself and the packages up to `tracking`.
"""
