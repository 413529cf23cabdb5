"""This machine: its disks, console, processes, signals, processors, GPUs, and git.

A module here answers what this host has and does, and knows nothing of runs or TensorFlow.
It may import the modules of `harness` itself.
"""
