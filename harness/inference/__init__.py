"""Saves and loads a trained model, classifies raw text with it, and exports it.

This package uses neither a strategy nor the training loop.
It may import modules directly in `harness`, and the packages above it in harness/README.md.
"""
