"""`harness doctor`: checks of this site, and an estimate of how long a job takes here.

A check yields findings with remedies and leaves no files.
This package may import the modules of `harness` itself and the packages up to `tuning`.
"""
