"""What networks read: the order and the batches of reviews, n-grams and their ratios.

It may import the modules of `harness` itself and the packages up to `data`.
"""
