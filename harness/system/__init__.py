"""Modules for this machine's disks, console, processes, signals, processors, GPUs, and git.

The modules import no other package of harness, and never import TensorFlow.
"""
