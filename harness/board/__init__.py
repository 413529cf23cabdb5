"""TensorBoard for one user: the runs that it shows, and its server behind a secret path.

The package writes only a temporary folder of symbolic links, and the file with TensorBoard's
address in the user's cache.
"""
