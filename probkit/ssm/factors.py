"""Dynamic factors: a few hidden autoregressions that many series see."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit.model import Default, Param, param
from probkit.ssm import components, several
from probkit.ssm.distribution import LinearGaussian
from probkit.ssm.several_distribution import Loadings, MultivariateSeries
from probkit.ssm.several_model import SeveralSeries, noises, spreads
from probkit.ssm.stationary_distribution import StationaryAR, stationary_ar


def _loadings(self: Any, y: Any, X: Any) -> dist.Distribution:
    return Loadings(spreads(y), int(self.factors))


def _coefficients(self: Any, y: Any, X: Any) -> dist.Distribution:
    return StationaryAR(int(self.order)).expand([int(self.factors)]).to_event(1)


def _noise_coefficients(self: Any, y: Any, X: Any) -> dist.Distribution:
    return dist.Uniform(-1.0, 1.0).expand([y.shape[1]]).to_event(1)


class DynamicFactor(SeveralSeries):
    """Several series that see a few common factors, each factor a stationary autoregression.

    ``y_it = intercept_i + loadings_i1 f_1t + ... + noise_it``, ``f_jt = phi_j1 f_j(t-1) + ... + N(0, 1)``, with y
    (time, series) and NaN anywhere (ragged starts and ends as well). The noise of the series is independent, white or
    an autoregression of order 1. States are integrated out; ``posterior.components()`` holds ``factor_1``, ... and
    ``signal.<series>``.

    **Identification.** Factors have innovations of variance 1, and loadings are zero above the diagonal and positive on
    it: the first series sees factor 1 alone and with a positive sign, the second the first two, and so on. Put
    series first that move with what the factors are to mean; a first series that does not see its factor leaves the
    sign of the factor open. Of two factors or more, each with an autoregression of its own, that is also a restriction
    on the model: rotated loadings are another model, and the order of the series matters.

    Args:
        factors: how many.
        order: lags of each factor's autoregression.
        noise_order: 0, white noise, or 1.
        loadings: the free loadings, column by column: of one factor (series,); numbers may be given as a matrix
            (series, factors). Default: normal with the spread of each series (`pk.ssm.Loadings`).
        coefficients: phi, (factors, order). Default: uniform over the region of stationarity.
        obs_scale: standard deviation of the noise of each series (of its innovations where it is an autoregression).
            Default: half-normal with the spread of each, cut off below at its rounding error.
        noise_coefficients: coefficient of each noise, (series,), where `noise_order` is 1. Default: uniform on (-1, 1).
        intercept: None, the default, for intercepts under a flat prior, integrated out; or numbers (series,), or a
            prior.

    References:
        Stock and Watson (2016), Dynamic factor models, factor-augmented vector autoregressions, and structural vector
        autoregressions in macroeconomics. Geweke and Zhou (1996). Durbin and Koopman (2012), section 3.7.
    """

    factors: int = eqx.field(static=True, default=1)
    order: int = eqx.field(static=True, default=1)
    noise_order: int = eqx.field(static=True, default=0)
    loadings: Param = param(default=_loadings)
    coefficients: Param = param(dims=("factor", "lag"), support=stationary_ar, default=_coefficients)
    obs_scale: Param = param(dims=("series",), support=constraints.nonnegative, default=noises)
    noise_coefficients: Param = param(
        dims=("series",), support=constraints.interval(-1.0, 1.0), default=_noise_coefficients
    )
    intercept: Any = None

    def __post_init__(self) -> None:
        if self.noise_order == 0:
            if not isinstance(self.noise_coefficients, Default):
                raise ValueError("noise_coefficients was given and noise_order is 0; noise_order=1 is wanted.")
            self.noise_coefficients = 0.0
        if isinstance(self.loadings, np.ndarray | jax.Array) and np.ndim(self.loadings) == 2:
            matrix = np.asarray(self.loadings)
            if matrix.shape[1] != self.factors or np.any(np.triu(matrix, 1) != 0):
                raise ValueError(
                    f"loadings has shape {matrix.shape}; (series, {self.factors}), zeros above the diagonal, is wanted."
                )
            self.loadings = np.concatenate([matrix[j:, j] for j in range(self.factors)])

    def __check_init__(self) -> None:
        for name, least in (("factors", 1), ("order", 1), ("noise_order", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is wanted.")
        if self.noise_order > 1:
            raise ValueError(f"noise_order is {self.noise_order}; 0, white noise, or 1 is wanted.")

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse inputs, one series alone, and more factors than series."""
        super().check_data(y, X)
        if X is not None:
            raise TypeError("DynamicFactor takes no X.")
        if self.factors > y.shape[1]:
            raise ValueError(f"factors is {self.factors}; at most {y.shape[1]}, the series of y, are told apart.")

    def parts(self) -> dict[str, None]:
        """The names of the factors."""
        return {f"factor_{j + 1}": None for j in range(self.factors)}

    def loading_matrix(self, series: int) -> Float[Array, "*draws p k"]:
        """The loadings as a matrix, one for each of a posterior's draws."""
        return several.loading_matrix(jnp.asarray(self.loadings), series, self.factors)

    def distribution(self, X: Any, length: int) -> MultivariateSeries:
        """The distribution of y, (time, series), given the parameters."""
        free, k = jnp.asarray(self.loadings), self.factors
        p = (free.shape[-1] + k * (k - 1) // 2) // k
        phi = jnp.asarray(self.coefficients)
        if phi.shape != (k, self.order):
            raise ValueError(f"coefficients has shape {phi.shape}; ({k}, {self.order}) is wanted: factors and lags.")
        each = lambda x: jnp.broadcast_to(jnp.asarray(x, free.dtype), (p,))
        rho = each(self.noise_coefficients) if self.noise_order else None
        intercept = None if self.intercept is None else each(self.intercept)
        variance = jnp.square(each(self.obs_scale))
        model, start = several.dynamic_factors(self.loading_matrix(p), phi, variance, rho, intercept)
        own = (rho is not None) + (intercept is None)  # blocks of states that are of one series each
        owners = np.concatenate([np.full(k * self.order, -1), np.tile(np.arange(p), own)])
        levels = tuple(range(k * self.order, k * self.order + p)) if intercept is None else None
        block = components.level(0.0) if intercept is None else components.intercept(np.zeros(()))
        base = components.assemble([block], 0.0, free.dtype)
        return MultivariateSeries(model, start, base, tuple(owners.tolist()), levels, length)

    def forecast(self, y: Float[Array, "n p"], horizon: int, X: Any = None, X_new: Any = None) -> LinearGaussian:
        """The joint distribution of the next ``horizon`` observations, given ``y`` and the parameters."""
        return self.distribution(X, y.shape[0]).forecast(y, horizon)

    def decompose(self, y: Float[Array, "n p"], X: Any, key: Array) -> dict[str, tuple[Array, Array, Array]]:
        """The factors, and what each series would be without noise, given y: mean, standard deviation, one draw."""
        law, (n, p) = self.distribution(X, y.shape[0]), y.shape
        m = jnp.shape(law.model.T)[-1]
        factors = jnp.eye(m, dtype=y.dtype)[:: self.order][: self.factors]
        noiseless = m - p * self.noise_order
        Z = jnp.where(np.arange(m) < noiseless, jnp.asarray(law.model.Z), 0)
        rows = jnp.broadcast_to(jnp.concatenate([factors, Z]), (n, self.factors + p, m))
        mean, variance, draw = law.signals(key, y, rows)
        sd = jnp.sqrt(variance)
        found = {name: (mean[:, j], sd[:, j], draw[:, j]) for j, name in enumerate(self.parts())}
        d, k = law.model.d, self.factors
        return found | {"signal": (mean[:, k:] + d, sd[:, k:], draw[:, k:] + d)}
