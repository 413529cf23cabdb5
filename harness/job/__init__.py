"""Job files: their keys, custom functions, the space of a search.

It may import the modules of `harness` itself and `system`.
"""
