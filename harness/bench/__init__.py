"""Benchmarks against the notebook's own way, plain KerasTuner and PyTorch, in pairs.

Each measurement is of whole processes, and its ratios are compared with a stored record.
It may import the modules of `harness` itself and the packages up to `checks`.
"""
