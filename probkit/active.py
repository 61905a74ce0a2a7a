"""Active learning: fit, ask for the labels that would teach most, fit again."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from probkit import border
from probkit.evaluate.uncertainty import batch_bald
from probkit.fit import fit
from probkit.infer.method import Method, check_whole
from probkit.model import Model
from probkit.posterior import Posterior
from probkit.prediction import Prediction

ACQUISITIONS = ("epistemic", "entropy", "batch_bald", "random")


@dataclasses.dataclass(frozen=True)
class Learning:
    """What a loop of active learning did.

    Attributes:
        posterior: the last fit.
        asked: positions in the pool in the order in which they were asked for.
        labels: what was answered.
        history: what ``evaluate`` gave after each fit, the first before anything was asked.
    """

    posterior: Posterior
    asked: np.ndarray
    labels: np.ndarray
    history: list[Any]


def active_learning(
    model: Model,
    y: Any,
    X: Any,
    pool: Any,
    label: Callable[[np.ndarray], Any],
    *,
    key: Any,
    rounds: int = 5,
    size: int = 10,
    acquisition: str | Callable[[Prediction], Any] = "epistemic",
    method: Method | None = None,
    evaluate: Callable[[Posterior], Any] | None = None,
    progress: bool = True,
) -> Learning:
    """Label the cases of a pool that would teach a model most, a few at a time.

    Data keep one length from the first fit: what is not yet labelled is NaN, so that nothing compiles twice. Methods of
    nets, which leave such rows out, compile in every round all the same.

    What is asked for is worth what the model knows. On digits, nets at the mode under a prior of scale 1 were near
    chance at 40 labels, and asked worse than chance after; anchored ensembles (``pk.bnn.Ensemble``, ``prior=2.0``)
    start from 71%, and what they ask for serves about as well there as random labels do. Compare with ``"random"`` on
    your data.

    Args:
        model: a probkit model that predicts at new inputs, such as :class:`probkit.BNN`.
        y: labels known from the start, (n,).
        X: their inputs.
        pool: inputs of the cases that can be asked for.
        label: gives the labels of some positions in the pool: an oracle, a person, an experiment.
        key: a new-style key.
        rounds: how often to ask.
        size: labels asked for at a time.
        acquisition: ``"epistemic"`` (the spread that comes of not knowing the parameters; for classes the mutual
            information, BALD), ``"entropy"``, ``"batch_bald"`` (classes alone), ``"random"``, or a function of the
            prediction at the pool that gives a score for each case.
        method: how to fit; the model's default.
        evaluate: called with every posterior.
        progress: whether to show a progress bar.

    Raises:
        ValueError: an unknown acquisition; a pool too small; answers of the wrong length.

    References:
        Settles (2009), Active learning literature survey. Gal, Islam and Ghahramani (2017), Deep Bayesian active
        learning with image data.
    """
    from tqdm.auto import tqdm

    border.check_key(key, "active_learning")
    check_whole("rounds", rounds, 1)
    check_whole("size", size, 1)
    y, X, pool = np.asarray(y, float), np.asarray(X), np.asarray(pool)
    if not callable(acquisition) and acquisition not in ACQUISITIONS:
        raise ValueError(f"acquisition is {acquisition!r}; one of {', '.join(ACQUISITIONS)} or a function is wanted.")
    if len(pool) < rounds * size or pool.shape[1:] != X.shape[1:]:
        raise ValueError(f"pool has shape {pool.shape}; {rounds * size} rows or more of {X.shape[1:]} are wanted.")
    all_X, all_y = np.concatenate([X, pool]), np.concatenate([y, np.full(len(pool), np.nan)])
    asked: list[int] = []
    history: list[Any] = []
    for i in tqdm(range(rounds + 1), disable=not progress, desc="active learning", leave=False):
        k_fit, k_ask = jax.random.split(jax.random.fold_in(key, i))
        posterior = cast(Posterior, fit(model, all_y, all_X, key=k_fit, method=method, progress=False))
        history.append(None if evaluate is None else evaluate(posterior))
        if i == rounds:
            break
        left = np.setdiff1d(np.arange(len(pool)), asked)
        chosen = left[_chosen(posterior, pool, left, acquisition, size, k_ask)]
        answer = np.asarray(label(chosen), float)
        if answer.shape != chosen.shape:
            raise ValueError(f"label gave shape {answer.shape} for {size} cases; ({size},) is wanted.")
        all_y[len(y) + chosen] = answer
        asked += chosen.tolist()
    return Learning(posterior, np.array(asked), all_y[len(y) + np.array(asked)], history)


def _chosen(posterior: Posterior, pool: np.ndarray, left: np.ndarray, acquisition: Any, size: int, key: Any) -> Any:
    """Which of those left to ask for."""
    if acquisition == "random":
        return np.asarray(jax.random.permutation(key, len(left)))[:size]
    # The whole pool, also where it is known: a prediction of another size would compile again.
    prediction = posterior.predict(pool)
    if acquisition == "batch_bald":
        if prediction.probabilities is None:
            raise ValueError("acquisition='batch_bald' is for classes; take 'epistemic'.")
        return batch_bald(prediction.probabilities[..., left, :], size)
    score = acquisition(prediction) if callable(acquisition) else getattr(prediction, acquisition)
    return np.argsort(-np.asarray(score, float)[left], kind="stable")[:size]
