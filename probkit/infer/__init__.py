"""Inference: what a target is, and the methods that answer it."""
