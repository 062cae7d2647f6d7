"""Comparisons with published results (paper/), with other software (speed/), and of methods on tables (tables/)."""
