"""Job files: their keys with all facts about them, custom functions, the space of a search.

It may import the modules of `harness` itself and `system`.
"""
