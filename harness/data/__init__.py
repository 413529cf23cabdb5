"""Reviews: IMDB, texts of users, vocabulary, n-grams, and batches for networks.

It may import the modules of `harness` itself and the packages `system` and `job`.
"""
