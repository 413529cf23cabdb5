"""Modules for this machine's disks, console, processes, signals, processors, GPUs, and git.

The modules do not depend on runs and never import TensorFlow.
"""
