"""A trained model: its file, the classes of raw text, its export.

Nothing here needs a strategy or a training loop.
It may import the modules of `harness` itself and the packages up to `compute`.
"""
