"""Tables of texts as people have them, read a few rows at a time.

It may import the modules of `harness` itself and the packages `files` and `system`.
"""
