"""Evaluation: calibration and scores of predictions as functions of arrays; cross-validation in files of its own."""

from probkit.evaluate import conformal
from probkit.evaluate.classification import (
    bootstrap,
    brier,
    calibration_error,
    decide,
    log_loss,
    reliability,
    shift_priors,
    skill,
    threshold,
)
from probkit.evaluate.regression import coverage, crps, crps_normal, pit, pit_normal, recalibrate
from probkit.evaluate.scaling import as_logits, beta, isotonic, platt, temperature, vector
from probkit.evaluate.uncertainty import auroc, batch_bald, entropy, mutual_information

__all__ = [
    "as_logits",
    "auroc",
    "batch_bald",
    "beta",
    "bootstrap",
    "brier",
    "calibration_error",
    "conformal",
    "coverage",
    "crps",
    "crps_normal",
    "decide",
    "entropy",
    "isotonic",
    "log_loss",
    "mutual_information",
    "pit",
    "pit_normal",
    "platt",
    "recalibrate",
    "reliability",
    "shift_priors",
    "skill",
    "temperature",
    "threshold",
    "vector",
]
