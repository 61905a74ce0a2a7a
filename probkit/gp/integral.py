"""Values and integrals of one function of one input: the covariance of a process with its own integrals, by nodes."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp.covariance import Covariance, refused_part
from probkit.gp.product_covariances import White
from probkit.math.linalg import matmul
from probkit.model import Param, param


def _integrable(kernel: Covariance) -> Covariance:
    if refused_part("Integral", kernel, lambda part: isinstance(part, White)) is not None:
        raise TypeError("White has no integral; gp.Integral takes covariances of functions.")
    return kernel


class Integral(Covariance):
    """The covariance of a function and its integrals over intervals, so that y may mix values, totals and averages.

    A row of X is an interval ``[a, b]``: y is the integral of f from a to b, or, where ``b = a``, the value ``f(a)``::

        X = np.array([[0.0, 7.0], [7.0, 14.0], [3.0, 3.0]])    # two weekly totals, and one value
        posterior = pk.fit(pk.GP(pk.gp.Integral(pk.RBF())), y, X, key=key)
        posterior.predict(np.array([[5.0, 5.0], [0.0, 3.0]]))    # the function at 5, and its integral over three days

    Integrals are sums over Gauss-Legendre nodes, so this is a covariance whatever the kernel. It is that of the
    integral to ten digits where f is smooth over an interval (RBF, a lengthscale of a fifth of the interval or more);
    with kinks (Matérn 1/2) the error falls with the square of ``nodes``. Costs are those of ``nodes²`` times the
    entries.

    ``obs_scale`` of the model is the noise of values: where no row is one, give it a number, for y says nothing of it
    (nor of ``total_scale`` where all rows are values). At new inputs integrals are those of the function itself. It
    stands outermost: sums and products go inside. Solved by ``gp.Exact()`` or ``gp.Sparse()``.

    Args:
        kernel: the covariance of the function, of one column of inputs.
        total_scale: standard deviation of the noise of observed integrals, in units of y. Default: half-normal with
            their spread, cut off below at their rounding error; 0 is exact integrals.
        average: whether y holds averages over the intervals instead of integrals; static.
        nodes: how many nodes there are in an interval; static.

    Raises:
        TypeError: White, or another covariance that stands outermost.
        ValueError: ``nodes`` is no whole number of at least 2.

    References:
        O'Hagan (1991), Bayes-Hermite quadrature. Smith, Álvarez and Lawrence (2018), Gaussian process regression for
        binned data.
    """

    outermost: ClassVar[bool] = True

    kernel: Covariance = eqx.field(converter=_integrable)
    total_scale: Param = param(
        support=constraints.nonnegative,
        default=lambda self, y, X: priors.noise(jnp.where(X[:, 1] > X[:, 0], y, jnp.nan)),
    )
    average: bool = eqx.field(static=True, default=False)
    nodes: int = eqx.field(static=True, default=12)

    def __check_init__(self) -> None:
        if isinstance(self.nodes, bool) or not isinstance(self.nodes, int) or self.nodes < 2:
            raise ValueError(f"nodes is {self.nodes!r}; a whole number of at least 2 is wanted.")

    def shown_inside(self, field: str, y: Any, X: Any) -> tuple[Any, Any]:
        """Averages at the middles of the intervals are what the covariance of the function is scaled to."""
        length = X[:, 1] - X[:, 0]
        return (y if self.average else y / jnp.where(length > 0, length, 1.0)), 0.5 * (X[:, 0] + X[:, 1])

    def check_inputs(self, X: Any) -> None:
        """Refuse inputs that are no intervals."""
        shape = np.shape(X)
        if len(shape) != 2 or shape[1] != 2:
            raise ValueError(f"X has shape {shape}; gp.Integral takes (n, 2), the start and the end of each interval.")
        back = np.flatnonzero(np.asarray(X)[:, 1] < np.asarray(X)[:, 0])
        if back.size:
            raise ValueError(
                f"X holds {np.asarray(X)[back[0]]} in row {back[0]}; the end must not lie before the start."
            )

    def _places(self, X: Float[Array, "n 2"]) -> tuple[Float[Array, " points"], Float[Array, "n nodes"]]:
        """Nodes, and what each counts in its row; at a value they all stand there, and count 1 together."""
        x, w = (jnp.asarray(a, X.dtype) for a in np.polynomial.legendre.leggauss(self.nodes))
        half = 0.5 * (X[:, 1:] - X[:, :1])
        size = jnp.where((half > 0) & (not self.average), half, 0.5)
        return jnp.ravel(0.5 * (X[:, :1] + X[:, 1:]) + half * x), size * w

    def __call__(self, X1: Float[Array, "n 2"], X2: Float[Array, "m 2"]) -> Float[Array, "n m"]:
        """Covariance between two sets of rows."""
        (p, u), (q, v) = self._places(X1), self._places(X2)
        K = self.kernel(p, p if X1 is X2 else q).reshape(*u.shape, *v.shape)
        return jnp.sum(jnp.sum(K * v, axis=3) * u[:, :, None], axis=1)

    def diagonal(self, X: Float[Array, "n 2"]) -> Float[Array, " n"]:
        """Variance of each row."""
        p, u = self._places(X)
        own = lambda p, u: matmul(u, matmul(self.kernel(p, p), u))
        return eqx.filter_vmap(own)(p.reshape(u.shape), u)

    def observed_noise(self, X: Float[Array, "n 2"], variance: Array) -> Float[Array, " n"]:
        """Variance of the noise of each row, where that of values is given."""
        return jnp.where(X[:, 1] > X[:, 0], jnp.asarray(self.total_scale, X.dtype) ** 2, variance)

    def fresh_noise(self, X: Float[Array, "m 2"], variance: Array) -> Float[Array, " m"]:
        """The same for new rows, where integrals are those of the function."""
        return jnp.where(X[:, 1] > X[:, 0], 0.0, variance)

    def observed_mean(self, mean: Callable, X: Float[Array, "n 2"]) -> Float[Array, " n"]:
        """The mean of each row, where that of values is a function of inputs."""
        p, u = self._places(X)
        return jnp.sum(u * mean(p).reshape(u.shape), axis=1)
