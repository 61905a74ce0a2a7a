"""Exponential smoothing: recursions of the thirty forms, their laws, the models, and the choice among them."""
