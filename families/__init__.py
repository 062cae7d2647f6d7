"""Families of functions beside those of the papers: a file each."""
