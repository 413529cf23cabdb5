"""Whether this site is set up: the checks of `harness doctor`, and how long a job takes here.

A check returns findings, each with its remedy, and changes nothing that outlives it.
It may import the modules of `harness` itself and the packages up to `tuning`.
"""
