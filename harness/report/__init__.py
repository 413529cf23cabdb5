"""Compares runs: scores over seeds, significance, linear baselines, tables and the HTML report.

An ensemble averages finished runs and the linear model over n-grams. Only validation reviews choose
its weights, and its folder is complete by itself.
It may import the modules of `harness` itself and the packages up to `training`.
"""
