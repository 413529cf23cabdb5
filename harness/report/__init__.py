"""Runs compared: results across seeds, significance, linear baselines, tables and the HTML report.

Ensembles average finished runs and the linear model over n-grams; their weights are chosen on
validation reviews alone, and the folder of one holds all it needs.
It may import the modules of `harness` itself and the packages up to `training`.
"""
