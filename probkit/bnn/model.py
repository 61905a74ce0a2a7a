"""Bayesian neural nets: any net, with priors on its weights and a likelihood on its outputs."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probkit import priors
from probkit.bnn.local import Dropout, Local
from probkit.bnn.nets import Applied, forward
from probkit.bnn.weights import Weights, with_places
from probkit.likelihoods import Gaussian, Likelihood
from probkit.model import Default, Model, Param, param


def _centre_of_inputs(self: Any, y: Any, X: Any) -> Any:
    """Mean of every column; of everything where a point has several axes (images, sequences)."""
    _need(X)
    return jnp.mean(X, axis=0) if X.ndim <= 2 else jnp.mean(X)


def _scale_of_inputs(self: Any, y: Any, X: Any) -> Any:
    _need(X)
    axis = 0 if X.ndim <= 2 else None
    middle = jnp.mean(X, axis=axis)
    scale = jnp.sqrt(jnp.mean((X - middle) ** 2, axis=axis))
    # A column that is constant to rounding carries nothing: it is only centred.
    return jnp.where(scale > 8 * jnp.finfo(X.dtype).eps * jnp.abs(middle), scale, 1.0)


def _centre_of_y(self: Any, y: Any, X: Any) -> Any:
    return priors.centre(y)


def _scale_of_y(self: Any, y: Any, X: Any) -> Any:
    return priors.spread(y)


def _need(X: Any) -> None:
    if X is None:
        raise TypeError("BNN needs X: pk.fit(pk.BNN(...), y, X, key=key).")


class BNN(Model):
    """A Bayesian neural net: ``y_i ~ likelihood(f(x_i))`` with f a net whose weights are unknown.

    Inputs, and y where the likelihood has a location, are standardised inside with the means and spreads of the data
    fitted; densities, noise and predictions stand in the units of y, so leave-one-out terms compare with any family's.

    Without ``method`` a net is fitted by ``pk.bnn.LaplaceGGN()`` up to 5,000 weights, and above by
    ``pk.bnn.Ensemble()``. ``NUTS``, ``MAP``, ``VI`` take small nets. Weights of different chains need not agree, since
    hidden units may swap: judge R-hat on predictions (:func:`probkit.bnn.r_hat`).

    Args:
        net: :func:`probkit.mlp`; any Equinox module called with one point; with ``params``, a function
            ``net(params, X)`` of a whole batch, or a Flax module. Its inexact arrays are the weights.
        likelihood: of :mod:`probkit.likelihoods`. Default: ``Gaussian()``.
        prior: the prior of the weights, :class:`probkit.bnn.Weights`; a number is its scale.
        params: parameters of a pure function or a Flax module.
        standardise: False leaves X and y as they are.

    X is (n,), (n, features), or with more axes whatever the net takes: images (n, h, w, c), sequences.

    References:
        MacKay (1992), A practical Bayesian framework for backpropagation networks. Neal (1996), Bayesian learning for
        neural networks.
    """

    input_axes: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)

    net: Any
    likelihood: Likelihood
    prior: Weights
    x_centre: Param = param()
    x_scale: Param = param()
    y_centre: Param = param()
    y_scale: Param = param()
    local: Local | Dropout | None = None

    def __init__(
        self,
        net: Any,
        likelihood: Likelihood | None = None,
        prior: Any = None,
        *,
        params: Any = None,
        standardise: bool = True,
    ):
        likelihood = Gaussian() if likelihood is None else likelihood
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood is {likelihood!r}; one of probkit.likelihoods is wanted, as Gaussian().")
        self.likelihood = likelihood
        self.prior = prior if isinstance(prior, Weights) else Weights() if prior is None else Weights(scale=prior)
        self.net = with_places(_module(net, params), likelihood.outputs, self.prior.fan_in, self.prior.unknown)
        self.local = None
        if standardise:
            self.x_centre, self.x_scale = Default(_centre_of_inputs), Default(_scale_of_inputs)
        else:
            self.x_centre, self.x_scale = 0.0, 1.0
        if standardise and likelihood.is_location:
            self.y_centre, self.y_scale = Default(_centre_of_y), Default(_scale_of_y)
        else:
            self.y_centre, self.y_scale = 0.0, 1.0

    def latent(self, X: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        """The net's outputs in the units of the likelihood."""
        f = forward(self.net, self.standardised(X))
        if f.shape != (X.shape[0], self.likelihood.outputs):
            raise ValueError(
                f"net gives outputs of shape {f.shape} for {X.shape[0]} points; {type(self.likelihood).__name__} takes "
                f"({X.shape[0]}, {self.likelihood.outputs})."
            )
        return self.likelihood.scaled(f, self.y_centre, self.y_scale)

    def standardised(self, X: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Inputs as the net takes them; a single column becomes (n, 1)."""
        _need(X)
        x = (X - self.x_centre) / self.x_scale
        return x[:, None] if x.ndim == 1 else x

    def distribution(self, X: Any, length: int) -> dist.Distribution:
        """The distribution of y: independent given the weights; around a linearised net where ``local`` is set."""
        _need(X)
        if self.local is None:
            return self.likelihood.law(self.latent(X)).to_event(1)
        return self.local.law(self, X)

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse data that the likelihood does not take, and a missing X."""
        _need(X)
        self.likelihood.check(y)

    def default_method(self, y: Any, X: Any) -> Any:
        """Mixture of Laplaces for small nets, an ensemble for large ones."""
        from probkit.bnn.methods.ensemble import Ensemble
        from probkit.bnn.methods.laplace import LARGEST, LaplaceGGN
        from probkit.infer.target import Target

        sizes = Target(self, (y, X)).sites()
        weights = sum(_size(shape) for name, (shape, _) in sizes.items() if name.startswith("net."))
        return LaplaceGGN() if weights <= LARGEST else Ensemble()


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size


def _module(net: Any, params: Any) -> Any:
    """Whatever was given as a net, as a pytree with its weights."""
    if params is not None:
        if hasattr(net, "init") and hasattr(net, "apply"):
            return Applied(params, _FlaxApply(net))
        if not callable(net):
            raise TypeError(f"net is {type(net).__name__}; with params a function apply(params, X) is wanted.")
        return Applied(params, net)
    if not isinstance(net, eqx.Module):
        raise TypeError(
            f"net is {type(net).__name__}; pk.mlp(), an Equinox module, or a function or Flax module with params= is "
            "wanted."
        )
    return eqx.nn.inference_mode(net)


class _FlaxApply(eqx.Module):
    """``module.apply({"params": params}, X)`` of a Flax module, which is static."""

    module: Any = eqx.field(static=True)

    def __call__(self, params: Any, X: Array) -> Array:
        """The module on a batch."""
        return self.module.apply(params if "params" in params else {"params": params}, X)

    def __hash__(self) -> int:
        return hash(self.module)
