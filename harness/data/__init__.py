"""Reviews: where they come from, how they are stored, and their vocabulary.

IMDB and a user's own texts become the same `Dataset`.
It may import the modules of `harness` itself and the packages up to `texts`.
"""
