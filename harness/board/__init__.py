"""TensorBoard for one user: the runs that it shows, and its server behind a secret path.

This package reads the folders of runs. It writes only symbolic links in a temporary folder, and
the file with TensorBoard's address in the user's cache.
It may import the modules of `harness` itself and the packages up to `tracking`, in the order of
`harness/README.md`.
"""
