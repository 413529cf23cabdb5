"""A trained model: its file, and the sentiment of raw text.

Nothing here needs a strategy or a training loop.
It may import the modules of `harness` itself and the packages up to `compute`.
"""
