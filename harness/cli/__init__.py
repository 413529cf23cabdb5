"""The command line: each command parses its arguments, calls one function, and prints.

A command imports other modules in its function, so that `--help` answers at once.
"""
