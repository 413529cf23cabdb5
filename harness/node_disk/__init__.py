"""A node's own disk: the environment unpacked there, what is in use there, what may be removed.

It may import the modules of `harness` itself and `files`. `packed` runs without any package that is
installed: the environment that it would take them from is what it unpacks.
"""
