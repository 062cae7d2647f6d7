"""A file of measurements: its cells, its columns, its subjects as tasks."""
