"""Job files: their keys, the custom functions that they name, and the space of a search.

This package may import the modules of `harness` itself and the package `system`.
"""
