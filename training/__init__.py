"""Train a learner: the step, the loop, the optimiser, compiling, processes and signals, and the life of a run."""
