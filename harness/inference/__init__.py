"""A trained model: its file, its predictions for raw text, its export.

This package needs no strategy and no training loop.
It may import the modules of `harness` itself and the packages up to `compute`.
"""
