"""The care around a run: files, system, compiler, processes and tables of numbers. Knows nothing of meta-learning."""
