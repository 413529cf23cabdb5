"""Saves and loads a trained model, classifies raw text with it, and exports it.

The package does not use the training loop.
"""
