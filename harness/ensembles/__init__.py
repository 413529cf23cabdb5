"""Ensembles: finished runs, and the linear model over n-grams, whose probabilities are averaged.

The weights are chosen on validation reviews alone, and an ensemble's folder holds all it needs.
It may import the modules of `harness` itself and the packages up to `report`.
"""
