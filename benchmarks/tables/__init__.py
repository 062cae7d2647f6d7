"""Benchmarks on tables of measurements."""
