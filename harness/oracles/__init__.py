"""Oracles, which choose what a search tries next, where KerasTuner's own do not suffice.

It may import the modules of `harness` itself.
"""
