"""Saves and loads a trained model, classifies raw text with the model, and exports the model.

The package does not use the training loop.
"""
