"""The command line: each command parses its arguments, calls one function, and prints.

A command imports what it needs when it is called, so that `--help` answers at once.
It may import every other package.
"""
