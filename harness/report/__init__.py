"""Compares runs: scores over seeds, significance, linear baselines, tables and the HTML report.

An ensemble averages the predictions of finished runs and of a linear n-gram model. The
weights of an ensemble are chosen on validation reviews only. An ensemble's `ensemble.toml` names
the ensemble's runs.
"""
