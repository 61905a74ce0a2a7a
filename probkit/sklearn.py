"""Estimators for scikit-learn: ``fit``, ``predict`` and spread, in pipelines and grids, around probkit's models.

scikit-learn is an extra: ``pip install scikit-learn``. This is the one place with ``random_state=None``, as its users
expect: then every fit takes a seed of its own.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from probkit import likelihoods
from probkit.bnn.methods.ensemble import Ensemble
from probkit.bnn.model import BNN
from probkit.bnn.nets import mlp
from probkit.fit import fit
from probkit.gp.latent import LatentGP
from probkit.gp.model import GP
from probkit.gp.stationary_covariances import Matern52
from probkit.infer.point import MAP

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:  # pragma: no cover
    raise ImportError("probkit.sklearn needs scikit-learn: pip install scikit-learn") from error


#: Attributes that hold a posterior, or a list of them.
_POSTERIORS = {"posterior_", "posteriors_"}


def _each(held: Any, fn: Any) -> Any:
    return [fn(one) for one in held] if isinstance(held, list) else fn(held)


def _numbers(key: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def _key(numbers: np.ndarray) -> Any:
    return jax.random.wrap_key_data(jax.numpy.asarray(numbers))


class _Estimator(BaseEstimator):
    """What the estimators share: data checked by scikit-learn, a posterior fitted, predictions of it.

    A subclass gives ``__init__`` with ``method`` and ``random_state``, and ``_model()``.
    """

    _default_method: Any = None

    def _fit(self, model: Any, X: np.ndarray, y: np.ndarray) -> None:
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        method = self.method or self._default_method
        self.posterior_ = fit(model, y, X, key=jax.random.key(seed), method=method, progress=False)

    def __getstate__(self) -> dict[str, Any]:
        """For copies in other processes: keys, which JAX does not pickle, as plain numbers."""
        state = dict(super().__getstate__())
        for name in _POSTERIORS & state.keys():
            state[name] = _each(state[name], lambda one: (dataclasses.replace(one, key=None), _numbers(one.key)))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Back from :meth:`__getstate__`."""
        state = dict(state)
        for name in _POSTERIORS & state.keys():
            state[name] = _each(state[name], lambda one: dataclasses.replace(one[0], key=_key(one[1])))
        super().__setstate__(state)

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=[np.float64, np.float32])

    def _predict(self, X: Any) -> Any:
        X = self._checked(X)  # first: it tells what is not fitted yet
        return self.posterior_.predict(X)


class _Regressor(RegressorMixin, _Estimator):
    """A regressor: the mean of the posterior's prediction, and its spread on request."""

    def fit(self, X: Any, y: Any) -> "_Regressor":
        """Fit to inputs (n, features) and numbers (n,)."""
        X, y = validate_data(self, X, y, y_numeric=True, dtype=[np.float64, np.float32])
        self._fit(self._model(), X, np.asarray(y, X.dtype))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive mean, (n,); with ``return_std`` the standard deviation of an observation too."""
        found = self._predict(X)
        return (found.mean, found.std) if return_std else found.mean


class _Classifier(ClassifierMixin, _Estimator):
    """A classifier: probabilities of the posterior's prediction."""

    def fit(self, X: Any, y: Any) -> "_Classifier":
        """Fit to inputs (n, features) and labels (n,) of any kind."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, at = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]!r}; two classes at least are wanted.")
        self._fit(self._model(len(self.classes_)), X, at.astype(X.dtype))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each of ``classes_``, (n, classes)."""
        return self._predict(X).class_probabilities

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label, (n,)."""
        p = self.predict_proba(X)
        return self.classes_[p.argmax(1)]


class _Net(_Estimator):
    """What the estimators by nets share.

    Args:
        hidden: widths of the hidden layers.
        activation: as in :func:`probkit.mlp`.
        method: how to fit; ``pk.bnn.Ensemble()`` by default here, as estimators are fitted often.
        random_state: seed, generator, or None for a seed of its own.
    """

    _default_method = Ensemble()

    def __init__(self, hidden: Any = (50,), activation: str = "tanh", method: Any = None, random_state: Any = None):
        self.hidden = hidden
        self.activation = activation
        self.method = method
        self.random_state = random_state

    def _net(self, likelihood: Any = None) -> BNN:
        return BNN(mlp(list(self.hidden), self.activation), likelihood)


class BNNRegressor(_Regressor, _Net):
    """A Bayesian neural net for numbers, as an estimator of scikit-learn; ``hidden, activation, method, random_state``.

    ``hidden`` are the widths of the hidden layers, ``activation`` is as in :func:`probkit.mlp`; ``method`` is
    ``pk.bnn.Ensemble()`` by default, and ``random_state`` a seed, a generator, or None for a seed of its own.
    """

    def _model(self) -> BNN:
        return self._net()


class BNNClassifier(_Classifier, _Net):
    """A Bayesian neural net for classes, as an estimator of scikit-learn; arguments as in :class:`BNNRegressor`."""

    def _model(self, classes: int) -> BNN:
        return self._net(likelihoods.Categorical(classes))


#: Rows that a Gaussian process predicts at once: each number of rows is a program, and a joint law of all is square.
ROWS = 256


def _in_blocks(posterior: Any, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictive means and standard deviations, in blocks of one size filled up with copies of a row."""
    means, stds = [], []
    size = 16 if len(X) <= 16 else ROWS
    for begin in range(0, len(X), size):
        block = X[begin : begin + size]
        found = posterior.predict(np.concatenate([block, np.repeat(block[:1], size - len(block), axis=0)]))
        mean = found.mean if found.stds is not None else found.means.mean((0, 1), dtype=float)
        means.append(mean[: len(block)])
        stds.append(found.std[: len(block)])
    return np.concatenate(means), np.concatenate(stds)


class GPRegressor(_Regressor):
    """Gaussian-process regression, :class:`probkit.GP`, as an estimator of scikit-learn.

    Args:
        kernel: a covariance with priors in its fields. Default: ``Matern52()``, one lengthscale a column.
        solver: None is exact; ``gp.Sparse(200)`` and others approximate.
        method: how to fit, such as ``pk.NUTS()``; the mode under the default priors, ``pk.MAP(starts=4)``, by default.
        random_state: seed, generator, or None for a seed of its own.
    """

    _default_method = MAP(starts=4)

    def __init__(self, kernel: Any = None, *, solver: Any = None, method: Any = None, random_state: Any = None):
        self.kernel = kernel
        self.solver = solver
        self.method = method
        self.random_state = random_state

    def _model(self) -> GP:
        return GP(Matern52() if self.kernel is None else self.kernel, solver=self.solver)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive mean, (n,); with ``return_std`` the standard deviation of a fresh observation too."""
        X = self._checked(X)
        mean, std = _in_blocks(self.posterior_, X)
        return (mean, std) if return_std else mean


class GPClassifier(_Classifier):
    """Gaussian-process classification by Laplace's method, :class:`probkit.gp.LatentGP`, one class against the rest.

    Args:
        kernel: a covariance with priors in its fields. Default: ``Matern52()``.
        method: how to fit; ``pk.MAP(starts=2)`` by default.
        random_state: seed, generator, or None for a seed of its own.
    """

    _default_method = MAP(starts=2)

    def __init__(self, kernel: Any = None, *, method: Any = None, random_state: Any = None):
        self.kernel = kernel
        self.method = method
        self.random_state = random_state

    def _model(self, classes: int) -> LatentGP:
        return LatentGP(Matern52() if self.kernel is None else self.kernel, likelihoods.Bernoulli())

    def _fit(self, model: Any, X: np.ndarray, y: np.ndarray) -> None:
        told_apart = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        seeds = check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=len(told_apart))
        method = self.method or self._default_method
        self.posteriors_ = [
            fit(model, (y == one).astype(X.dtype), X, key=jax.random.key(int(seed)), method=method, progress=False)
            for one, seed in zip(told_apart, seeds, strict=True)
        ]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each of ``classes_``, (n, classes)."""
        X = self._checked(X)
        columns = [np.clip(_in_blocks(one, X)[0], 0.0, 1.0) for one in self.posteriors_]
        if len(columns) == 1:
            return np.stack([1 - columns[0], columns[0]], axis=1)
        table = np.stack(columns, axis=1) + np.finfo(float).tiny
        return table / table.sum(axis=1, keepdims=True)
