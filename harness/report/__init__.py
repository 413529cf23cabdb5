"""Compares runs: scores over seeds, significance, linear baselines, tables and the HTML report.

An ensemble averages the predictions of finished runs and of the linear model over n-grams. Its
weights are chosen on validation reviews only. Its folder contains everything that it needs.
This package may import the modules of `harness` itself and the packages up to `training`.
"""
