"""Reviews: where they come from, how they are stored, their vocabulary, and batches of them.

IMDB and a user's own texts become the same `Dataset`, which the input pipeline cuts into batches.
It may import the modules of `harness` itself, `files` and `system`.
"""
