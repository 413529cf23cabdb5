"""A search: KerasTuner's oracle, commands and their workers, the trials; then what it found.

A trial is a run, and the sweep's folder holds all that anybody needs to go on.
It may import the modules of `harness` itself and the packages up to `report`.
"""
