"""The comparison with published results; paper.py is the command."""
