"""Saves and loads a trained model, classifies raw text with it, and exports it.

The package uses neither a strategy nor the training loop.
"""
