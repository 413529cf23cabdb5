"""Modules for this machine's disks, console, processes, signals, processors, GPUs, and git.

They do not depend on runs and never import TensorFlow. They may import only the
modules directly in `harness/`.
"""
