"""This machine: its disks, console, processes, signals, processors, GPUs, and git.

The modules know nothing of runs and never import TensorFlow. They may import the modules of
`harness` itself.
"""
