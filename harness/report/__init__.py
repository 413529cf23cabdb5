"""Runs compared: results across seeds, significance, linear baselines, tables and the HTML report.

Everything here reads finished runs and writes only what `harness compare` was asked for.
It may import the modules of `harness` itself and the packages up to `training`.
"""
