"""Further meta-learning methods, one file each; a line in `registry.py` makes one known to the command line."""
