"""Evaluate a learner: errors, intervals, baselines, comparisons. Arrays in, plain numbers out."""
