"""A sweep while it runs: KerasTuner's oracle, the supervisor, its workers, and their trials.

A trial is a run, and the sweep's folder holds all that a supervisor needs to go on.
It may import the modules of `harness` itself and the packages up to `report`.
"""
