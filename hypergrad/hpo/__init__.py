"""Hyperparameter optimisation by command: problems, each one file in `problems/`, tuned by hypergradients on the shared runs."""
