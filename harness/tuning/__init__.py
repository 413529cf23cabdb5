"""A search: KerasTuner's oracle, commands and their workers, trials, the result.

A trial is a run. The sweep's folder holds all data that a process needs to continue the search.
It may import the modules of `harness` itself and the packages up to `report`.
"""
