"""Evaluation: what a model can do, as numbers that others can compare and a page to look at."""
