"""Reviews: IMDB, a user's own texts, their vocabulary and n-grams, and batches for networks.

This package may import the modules of `harness` itself and the packages `system` and `job`.
"""
