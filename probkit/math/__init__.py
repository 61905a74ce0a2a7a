"""Shared pieces of pure maths: linear algebra, optimisation, Pareto smoothing."""
