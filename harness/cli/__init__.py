"""The command line: each command parses its arguments, calls one function, and prints the result.

A command imports modules that load slowly inside its function, so that `--help` answers at once.
"""
