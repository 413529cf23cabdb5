"""The command line: each command parses its arguments, calls one function, and prints the result.

Modules that load slowly are imported inside the functions, so that `--help` answers at once.
"""
