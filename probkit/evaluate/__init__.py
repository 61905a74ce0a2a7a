"""Evaluation: leave-one-out, scores, calibration."""
