"""Stationary covariances: functions of the difference of two inputs, with priors in their fields."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp import kernels, markov
from probkit.gp.covariance import Covariance
from probkit.gp.kernels import squared_distance
from probkit.model import Param, param


def selected(X: Any, chosen: tuple[int, ...] | None) -> Any:
    """The active columns of X; None keeps X as it is."""
    return X if chosen is None or X is None else kernels.columns(X)[:, jnp.asarray(chosen)]


def both(X1: Array, X2: Array, chosen: tuple[int, ...] | None) -> tuple[Array, Array]:
    """The active columns of two sets of inputs; the same object where they were the same."""
    A = selected(X1, chosen)
    return A, A if X1 is X2 else selected(X2, chosen)


def default_lengthscale(self: Any, y: Any, X: Any) -> dist.Distribution:
    """Log-normal around a quarter of the span of each active column, times the root of their number."""
    return priors.lengthscale(y, selected(X, self.columns))


def default_scale(self: Any, y: Any, X: Any) -> dist.Distribution:
    """Half-normal with twice the spread of y."""
    return priors.half_normal(y, 2.0)


def default_ratio(self: Any, y: Any, X: Any) -> dist.Distribution:
    """Log-normal around 1: for what has no unit."""
    return dist.LogNormal(0.0, 1.0)


class Isotropic(Covariance):
    """Abstract: ``scale² k(s)`` of the squared scaled distance ``s = sum_d ((x_d - x'_d) / lengthscale_d)²``.

    Args:
        lengthscale: in the units of X, scalar or one per column (ARD). Default: log-normal around a quarter of the span
            of each column, times the root of the number of columns.
        scale: standard deviation of the function, in the units of y. Default: half-normal with twice the spread of y.
        columns: the active columns of X, all by default.
    """

    #: The correlation as a function of s and of the values of :meth:`shape`.
    correlation: ClassVar[Callable]

    lengthscale: Param = param(support=constraints.positive, default=default_lengthscale)
    scale: Param = param(support=constraints.nonnegative, default=default_scale)
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def shape(self) -> tuple[Array, ...]:
        """Further parameters of the correlation."""
        return ()

    def embed(self, X: Float[Array, "n *D"]) -> Float[Array, "n columns"]:
        """Scaled inputs, of which the correlation sees the plain distances."""
        Z = kernels.columns(selected(X, self.columns))
        return kernels.centred(Z) / jnp.asarray(self.lengthscale, Z.dtype)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        A, B = both(X1, X2, self.columns)
        return self.scale**2 * type(self).correlation(squared_distance(A, B, self.lengthscale), *self.shape())

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(jnp.asarray(self.scale, X.dtype) ** 2, X.shape[:1])


class RBF(Isotropic):
    """Squared exponential covariance: ``scale² exp(-s / 2)``, the smoothest. Fields as in :class:`Isotropic`.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. 4.9.
    """

    correlation: ClassVar[Callable] = staticmethod(kernels.rbf)

    def spectral_density(self, omega: Float[Array, "m D"]) -> Float[Array, " m"]:
        """Spectral density at angular frequencies, (m, D)."""
        length = jnp.broadcast_to(jnp.asarray(self.lengthscale, omega.dtype), omega.shape[1:])
        D = omega.shape[1]
        return (
            self.scale**2
            * (2 * math.pi) ** (D / 2)
            * jnp.prod(length)
            * jnp.exp(-0.5 * jnp.sum((omega * length) ** 2, 1))
        )


class Matern(Isotropic):
    """Abstract: Matérn covariances, whose order says how rough the function is. Fields as in :class:`Isotropic`."""

    #: The order: 1/2, 3/2 or 5/2.
    order: ClassVar[float]

    def spectral_density(self, omega: Float[Array, "m D"]) -> Float[Array, " m"]:
        """Spectral density at angular frequencies, (m, D): a multivariate Student-t in ``omega lengthscale``."""
        nu, D = self.order, omega.shape[1]
        length = jnp.broadcast_to(jnp.asarray(self.lengthscale, omega.dtype), omega.shape[1:])
        constant = 2**D * math.pi ** (D / 2) * math.gamma(nu + D / 2) * (2 * nu) ** nu / math.gamma(nu)
        power = (2 * nu + jnp.sum((omega * length) ** 2, 1)) ** (-nu - D / 2)
        return self.scale**2 * constant * jnp.prod(length) * power

    def blocks(self) -> tuple[markov.Block, ...] | None:
        """The stochastic differential equation of this covariance, in one dimension."""
        if jnp.size(self.lengthscale) != 1 or self.columns not in (None, (0,)):
            return None
        return (markov.matern(self.order, jnp.reshape(jnp.asarray(self.lengthscale), ()), self.scale),)


class Matern12(Matern):
    """Matérn-1/2 (exponential) covariance: ``scale² exp(-r)``; continuous paths. Fields as in :class:`Isotropic`."""

    correlation: ClassVar[Callable] = staticmethod(kernels.matern12)
    order: ClassVar[float] = 0.5


class Matern32(Matern):
    """Matern-3/2 covariance: ``scale² (1 + √3 r) exp(-√3 r)``; one derivative. Fields as in :class:`Isotropic`.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. 4.17.
    """

    correlation: ClassVar[Callable] = staticmethod(kernels.matern32)
    order: ClassVar[float] = 1.5


class Matern52(Matern):
    """Matérn-5/2 covariance: ``scale² (1 + √5 r + 5r²/3) exp(-√5 r)``; two derivatives. Fields: :class:`Isotropic`."""

    correlation: ClassVar[Callable] = staticmethod(kernels.matern52)
    order: ClassVar[float] = 2.5


class RationalQuadratic(Isotropic):
    """Rational quadratic covariance: ``scale² (1 + s / (2 alpha))^-alpha``, a mixture of RBFs of many lengthscales.

    Args:
        lengthscale: as in :class:`Isotropic`.
        scale: as in :class:`Isotropic`.
        alpha: shape of the mixture; large is RBF. Default: log-normal around 1.
        columns: the active columns of X, all by default.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. 4.19.
    """

    correlation: ClassVar[Callable] = staticmethod(kernels.rational_quadratic)

    alpha: Param = param(support=constraints.positive, default=default_ratio)

    def shape(self) -> tuple[Array, ...]:
        """Further parameters of the correlation: alpha."""
        return (jnp.asarray(self.alpha),)


class Periodic(Covariance):
    """Periodic covariance: ``scale² exp(-2 sum_d sin²(pi (x_d - x'_d) / period_d) / lengthscale_d²)``.

    Args:
        period: in the units of X, scalar or one per active column. Required: there is no default for a period.
        lengthscale: without units, relative to the period's circle; scalar or one per column. Default: log-normal
            around 1.
        scale: standard deviation of the function. Default: half-normal with twice the spread of y.
        columns: the active columns of X, all by default.

    References:
        MacKay (1998), Introduction to Gaussian processes.
    """

    period: Param = param(support=constraints.positive)
    lengthscale: Param = param(support=constraints.positive, default=default_ratio)
    scale: Param = param(support=constraints.nonnegative, default=default_scale)
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        A, B = (kernels.columns(X) for X in both(X1, X2, self.columns))
        period, length = (
            jnp.broadcast_to(jnp.asarray(v, A.dtype), A.shape[1:]) for v in (self.period, self.lengthscale)
        )
        parts = [
            (jnp.sin(math.pi * (A[:, d][:, None] - B[:, d][None, :]) / period[d]) / length[d]) ** 2
            for d in range(A.shape[1])
        ]
        return self.scale**2 * jnp.exp(-2.0 * sum(parts[1:], parts[0]))

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(jnp.asarray(self.scale, X.dtype) ** 2, X.shape[:1])


class Cosine(Covariance):
    """Cosine covariance: ``scale² cos(2 pi sum_d (x_d - x'_d) / period_d)``, one wave of random phase and size.

    Args:
        period: in the units of X, scalar or one per active column. Required.
        scale: standard deviation of the function. Default: half-normal with twice the spread of y.
        columns: the active columns of X, all by default.
    """

    period: Param = param(support=constraints.positive)
    scale: Param = param(support=constraints.nonnegative, default=default_scale)
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        A, B = (kernels.columns(X) for X in both(X1, X2, self.columns))
        period = jnp.broadcast_to(jnp.asarray(self.period, A.dtype), A.shape[1:])
        parts = [(A[:, d][:, None] - B[:, d][None, :]) / period[d] for d in range(A.shape[1])]
        return self.scale**2 * jnp.cos(2.0 * math.pi * sum(parts[1:], parts[0]))

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(jnp.asarray(self.scale, X.dtype) ** 2, X.shape[:1])


def _nyquist(y: Any, X: Any) -> Array:
    """Half of the mean number of inputs in a unit of each column, (D,)."""
    X = jnp.arange(y.shape[0], dtype=y.dtype) if X is None else X
    X = kernels.columns(X)
    span = jnp.max(X, 0) - jnp.min(X, 0)
    return 0.5 * max(X.shape[0] - 1, 1) / jnp.where(span > 0, span, 1.0)


def _repeated(law: dist.Distribution, components: int) -> dist.Distribution:
    return law.expand((components, *law.batch_shape)).to_event(1 + len(law.batch_shape))


class SpectralMixture(Covariance):
    """Spectral mixture covariance: ``sum_q scales_q² prod_d exp(-2 pi² t_d² width_qd²) cos(2 pi t_d frequency_qd)``.

    Its spectral density is a mixture of normals, dense among stationary covariances. Expect several modes: the priors
    and the starts decide.

    Args:
        components: how many normals; static.
        scales: standard deviations of the parts, (components,). Default: half-normal with the spread of y.
        frequencies: means of the normals, in cycles per unit of X, (components, D). Default: half-normal with half of
            the Nyquist frequency of the mean spacing.
        widths: their standard deviations, (components, D). Default: half-normal with a tenth of that.
        columns: the active columns of X, all by default.

    References:
        Wilson and Adams (2013), Gaussian process kernels for pattern discovery and extrapolation.
    """

    components: int = eqx.field(static=True)
    scales: Param = param(
        support=constraints.nonnegative,
        default=lambda self, y, X: _repeated(priors.half_normal(y), self.components),
    )
    frequencies: Param = param(
        support=constraints.nonnegative,
        default=lambda self, y, X: _repeated(
            dist.HalfNormal(0.5 * _nyquist(y, selected(X, self.columns))), self.components
        ),
    )
    widths: Param = param(
        support=constraints.nonnegative,
        default=lambda self, y, X: _repeated(
            dist.HalfNormal(0.05 * _nyquist(y, selected(X, self.columns))), self.components
        ),
    )
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        A, B = (kernels.columns(X) for X in both(X1, X2, self.columns))
        total = jnp.zeros((len(A), len(B)), A.dtype)
        frequencies, widths = (jnp.reshape(v, (self.components, A.shape[1])) for v in (self.frequencies, self.widths))
        for q in range(self.components):
            part = jnp.broadcast_to(jnp.asarray(self.scales, A.dtype)[q] ** 2, total.shape)
            for d in range(A.shape[1]):
                t = 2.0 * math.pi * (A[:, d][:, None] - B[:, d][None, :])
                part = part * jnp.exp(-0.5 * (t * widths[q, d]) ** 2) * jnp.cos(t * frequencies[q, d])
            total = total + part
        return total

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(jnp.sum(jnp.asarray(self.scales, X.dtype) ** 2), X.shape[:1])


class SHO(Covariance):
    """Damped oscillator driven by white noise (celerite's SHO term), a covariance of one column.

    ``scale² exp(-b t) (cos(w t) + b sin(w t) / w)`` with ``omega = 2 pi / period``, ``b = omega / (2 quality)`` and
    ``w² = omega² - b²``; overdamped where ``quality < 1/2``.

    Args:
        period: undamped period, in the units of X. Required.
        quality: how many times 2 pi cycles it takes to fade. Default: log-normal around 1.
        scale: standard deviation of the function. Default: half-normal with twice the spread of y.
        columns: the active column of X, such as ``(0,)``; None for one-dimensional inputs.

    References:
        Foreman-Mackey, Agol, Ambikasaran and Angus (2017), Fast and scalable Gaussian process modeling.
    """

    period: Param = param(support=constraints.positive)
    quality: Param = param(support=constraints.positive, default=default_ratio)
    scale: Param = param(support=constraints.nonnegative, default=default_scale)
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        A, B = (kernels.columns(X) for X in both(X1, X2, self.columns))
        if A.shape[1] != 1:
            raise ValueError(f"X has {A.shape[1]} columns; SHO takes one: name it, as in SHO(period, columns=(0,)).")
        tau = jnp.abs(A - B.T)
        return self.scale**2 * kernels.oscillator(tau, 2.0 * math.pi / self.period, jnp.asarray(self.quality))

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(jnp.asarray(self.scale, X.dtype) ** 2, X.shape[:1])

    def blocks(self) -> tuple[markov.Block, ...] | None:
        """The stochastic differential equation of this covariance."""
        if self.columns not in (None, (0,)):
            return None
        return (markov.oscillator(2.0 * math.pi / jnp.asarray(self.period), self.quality, self.scale),)
