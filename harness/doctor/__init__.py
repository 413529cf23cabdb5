"""`harness doctor`: checks of this site, and an estimate of how long a job takes here.

A check yields findings with remedies, and leaves no files behind.
"""
