"""Job files: their keys, with all that is to know of each; the space of a search.

It may import the modules of `harness` itself and `system`.
"""
