r"""Variational objectives as plain functions: ELBO, importance-weighted and Rényi bounds, for any guide.

The guide q is a NumPyro distribution over the latent z; ``log_density(z)`` is $\log p(y, z)$ for one z. Both may hold
parameters of any shape and name: what is differentiated is the function around the call,

    def loss(params, key):
        q = dist.Normal(params.loc, jnp.exp(params.log_scale)).to_event(1)
        return -elbo(log_joint, q, key, draws=10)

    jax.grad(loss)(params, key)

With $w_k = p(y, z_k) / q(z_k)$, every bound is the log of a power mean of weights,
$\frac1r \log \frac1K \sum_k w_k^r$: the ELBO is $r \to 0$, the importance-weighted bound r = 1, and Rényi's
$r = 1 - \alpha$. So bounds of the same draws are ordered as power means are.

The estimators agree in value and differ in the gradient, which is meant to be taken once: a second derivative of
anything but ``"path"`` is not unbiased.

References:
    Kingma, D. P. and Welling, M. (2014). Auto-encoding variational Bayes. ICLR.
    Ranganath, R., Gerrish, S. and Blei, D. M. (2014). Black box variational inference. AISTATS.
    Burda, Y., Grosse, R. and Salakhutdinov, R. (2016). Importance weighted autoencoders. ICLR.
    Li, Y. and Turner, R. E. (2016). Rényi divergence variational inference. NeurIPS.
    Roeder, G., Wu, Y. and Duvenaud, D. (2017). Sticking the landing: simple, lower-variance gradient estimators for
        variational inference. NeurIPS.
    Rainforth, T. et al. (2018). Tighter variational bounds are not necessarily better. ICML.
    Kool, W., van Hoof, H. and Welling, M. (2019). Buy 4 REINFORCE samples, get a baseline for free! ICLR workshop.
    Tucker, G., Lawson, D., Gu, S. and Maddison, C. J. (2019). Doubly reparameterized gradient estimators for Monte
        Carlo objectives. ICLR.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution

from probkit.border import check_key
from probkit.vi.divergences import kl

LogDensity = Callable[[Any], Any]


class Estimate(NamedTuple):
    """A Monte Carlo mean and its standard error."""

    value: Float[Array, ""]
    error: Float[Array, ""]


def elbo(
    log_density: LogDensity, q: Distribution, key: PRNGKeyArray, draws: int = 10, gradient: str = "path"
) -> Float[Array, ""]:
    r"""The evidence lower bound, $E_q[\log p(y, z) - \log q(z)] = \log p(y) - KL(q \| p(z | y))$, by Monte Carlo.

    ``gradient`` says how the gradient is estimated; each estimator is unbiased.

    * ``"path"``: through the draws, $z = g(\epsilon, \lambda)$ (Kingma and Welling 2014).
    * ``"sticking"``: through the draws, with q's parameters held inside $\log q(z)$, a term of mean zero less. The
      gradient is zero, draw by draw, where q is the posterior (Roeder, Wu and Duvenaud 2017).
    * ``"score"``: $\frac{1}{S-1} \sum_s (f_s - \bar f) \nabla \log q(z_s)$ with $f = \log p - \log q$, which is the
      score function with the mean of the other draws as baseline (Ranganath, Gerrish and Blei 2014; Kool, van Hoof and
      Welling 2019). It needs no derivative by z, so z may be discrete; it is far noisier than the others.

    The parameters of ``log_density`` have their ordinary gradient in all three.

    Args:
        log_density: $\log p(y, z)$ of one z, a scalar.
        q: the guide, with batch shape (); its event shape is the shape of z.
        key: a key.
        draws: S, the number of draws; at least 2 for ``"score"``.
        gradient: ``"path"``, ``"sticking"`` or ``"score"``.

    Returns:
        The estimate, a scalar.

    Raises:
        TypeError: no key.
        ValueError: another gradient or number of draws; a guide with a batch shape, or without reparametrised draws
            for a gradient that goes through them; a log density that is no scalar.
    """
    _check_gradient(gradient, ("path", "sticking", "score"))
    _check_whole("draws", draws, 1)
    z, log_q = _draw(q, key, (draws,), gradient, "elbo")
    log_p = _each("log_density", log_density, z, 1)
    if gradient == "score":
        return _score(log_p, log_q, log_p - log_q)
    return _log_power_mean(log_p - log_q, 0.0)


def elbo_with_kl(
    log_likelihood: LogDensity,
    q: Distribution,
    prior: Distribution,
    key: PRNGKeyArray,
    draws: int = 10,
    gradient: str = "path",
    closed_form: bool = True,
) -> Float[Array, ""]:
    r"""The evidence lower bound as $E_q[\log p(y | z)] - KL(q \| p(z))$: only the first term by Monte Carlo.

    The divergence adds no noise then. Near the posterior ``elbo(..., gradient="sticking")`` is quieter all the same,
    for there the errors of its terms cancel.

    Args:
        log_likelihood: $\log p(y | z)$ of one z, a scalar.
        q: the guide, with batch shape ().
        prior: p(z), of the same event shape and with batch shape ().
        key: a key.
        draws: the number of draws; at least 2 for ``"score"``.
        gradient: ``"path"``, or ``"score"`` for discrete z.
        closed_form: the divergence in closed form, and an error where none is registered for these two distributions.
            False: by the same draws, which is ``elbo`` of the joint.

    Returns:
        The estimate, a scalar.

    Raises:
        TypeError: no key.
        ValueError: as in :func:`elbo`; no closed form is registered; event shapes of prior and guide differ.
    """
    _check_gradient(gradient, ("path", "score"))
    _check_whole("draws", draws, 1)
    _check_unbatched("prior", prior)
    if prior.event_shape != q.event_shape:
        raise ValueError(
            f"prior has event shape {prior.event_shape} and q {q.event_shape}; both are over the same z, so one shape "
            "is wanted."
        )
    if not closed_form:
        return elbo(lambda z: log_likelihood(z) + prior.log_prob(z), q, key, draws, gradient)
    z, log_q = _draw(q, key, (draws,), gradient, "elbo_with_kl")
    fit = _each("log_likelihood", log_likelihood, z, 1)
    divergence = _closed_form(q, prior)
    return (_score(fit, log_q, fit) if gradient == "score" else jnp.mean(fit)) - divergence


def elbo_estimate(
    log_density: LogDensity, q: Distribution, key: PRNGKeyArray, draws: int = 1000, particles: int = 1
) -> Estimate:
    """The evidence lower bound on fresh draws with its Monte Carlo error: for reports, not for gradients.

    Args:
        log_density: log p(y, z) of one z, a scalar.
        q: the guide, with batch shape (); any kind, discrete ones too.
        key: a key that no fit has seen: on its own draws a fitted bound looks better than it is.
        draws: the number of draws that are averaged, at least 2.
        particles: the number of particles in each; more than one makes it the importance-weighted bound.

    Returns:
        The mean and its standard error, sd / sqrt(draws), both without gradient.

    Raises:
        TypeError: no key.
        ValueError: as in :func:`elbo`.
    """
    _check_whole("draws", draws, 2)
    _check_whole("particles", particles, 1)
    z, log_q = _draw(q, key, (draws, particles), "none", "elbo_estimate")
    bounds = lax.stop_gradient(_log_power_mean(_each("log_density", log_density, z, 2) - log_q, 1.0))
    return Estimate(jnp.mean(bounds), jnp.std(bounds, ddof=1) / math.sqrt(draws))


def iwae(
    log_density: LogDensity,
    q: Distribution,
    key: PRNGKeyArray,
    particles: int,
    draws: int = 1,
    gradient: str = "path",
) -> Float[Array, ""]:
    r"""The importance-weighted bound, $E[\log \frac1K \sum_k p(y, z_k) / q(z_k)]$: between the ELBO and the evidence.

    It grows with K and tends to $\log p(y)$ (Burda, Grosse and Salakhutdinov 2016). One particle gives the ELBO.

    * ``"path"``: through the draws. For q's parameters its mean over its sd falls as $1 / \sqrt K$ (Rainforth et al.
      2018).
    * ``"doubly"``: doubly reparametrised (Tucker et al. 2019). With normalised weights $\tilde w_k$, the gradient by
      q's parameters is $\sum_k \tilde w_k^2 \frac{\partial \log w_k}{\partial z_k} \nabla z_k$, whose mean over its sd
      grows as $\sqrt K$ where the weights are bounded. What ``log_density`` itself depends on, the parameters of a
      model, keeps the ordinary $\sum_k \tilde w_k \nabla \log p(y, z_k)$; a parameter that stands in both has the
      sum of the two. With one particle it is ``"sticking"``.

    Args:
        log_density: $\log p(y, z)$ of one z, a scalar.
        q: the guide, with batch shape ().
        key: a key.
        particles: K, the number of particles under the logarithm.
        draws: the number of such bounds that are averaged.
        gradient: ``"path"`` or ``"doubly"``.

    Returns:
        The estimate, a scalar.

    Raises:
        TypeError: no key.
        ValueError: as in :func:`elbo`.
    """
    _check_gradient(gradient, ("path", "doubly"))
    _check_whole("particles", particles, 1)
    _check_whole("draws", draws, 1)
    z, log_q = _draw(q, key, (draws, particles), gradient, "iwae")
    if gradient == "doubly":
        # The weights on a first pass, of the same values, so that jit runs the forward half of it once.
        fixed = lax.stop_gradient(z)
        weights = jax.nn.softmax(_each("log_density", log_density, fixed, 2) - log_q)
        # The bound has the slope w in each log weight; z hands on the share w of what reaches it: w² on the path.
        z = _graded(fixed, lax.stop_gradient(_over_event(weights, z)) * z)
        log_q = _log_prob_of_fixed(q, z)
    return jnp.mean(_log_power_mean(_each("log_density", log_density, z, 2) - log_q, 1.0))


def renyi(
    log_density: LogDensity, q: Distribution, key: PRNGKeyArray, particles: int, alpha: float, draws: int = 1
) -> Float[Array, ""]:
    r"""Rényi's bound, $E[\frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}]$ (Li and Turner 2016).

    It falls with alpha: 0 is :func:`iwae` and 1 the ELBO, both exactly. With many particles a negative alpha exceeds
    the evidence; one particle gives the ELBO whatever alpha. The gradient is ``"path"``.

    Args:
        log_density: $\log p(y, z)$ of one z, a scalar.
        q: the guide, with batch shape ().
        key: a key.
        particles: K, the number of particles under the logarithm.
        alpha: the order, a finite number.
        draws: the number of such bounds that are averaged.

    Returns:
        The estimate, a scalar.

    Raises:
        TypeError: no key.
        ValueError: as in :func:`elbo`; an alpha that is no finite number.
    """
    _check_whole("particles", particles, 1)
    _check_whole("draws", draws, 1)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number) or not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha!r}; a finite number is wanted, such as 0.5.")
    z, log_q = _draw(q, key, (draws, particles), "path", "renyi")
    return jnp.mean(_log_power_mean(_each("log_density", log_density, z, 2) - log_q, 1.0 - float(alpha)))


def minibatch_joint(
    log_prior: LogDensity, log_likelihood: Callable[[Any, Any], Any], size: int, batch: Any
) -> Callable[[Any], Float[Array, ""]]:
    r"""The joint log density by a part of the data, $\log p(z) + \frac{N}{B} \sum_{b=1}^B \log p(y_b | z)$.

    To be used as ``log_density``. Over random batches its mean is the full joint, so an ELBO and its gradient stay
    unbiased (Hoffman et al. 2013). Bounds with more than one particle do not: they are not linear in it.

    Args:
        log_prior: $\log p(z)$ of one z, a scalar.
        log_likelihood: called as ``log_likelihood(z, one)``, $\log p(y_b | z)$ of one observation, a scalar.
        size: N, the number of observations in the whole data.
        batch: an array, or any pytree of them, with B observations along the leading axis of every leaf.

    Returns:
        The scaled log joint density, a function of z.

    Raises:
        ValueError: a size that is no whole number of at least 1, or leaves of unequal or no length.

    References:
        Hoffman, M. D., Blei, D. M., Wang, C. and Paisley, J. (2013). Stochastic variational inference. Journal of
            Machine Learning Research 14, 1303-1347.
    """
    _check_whole("size", size, 1)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1 or shapes[0][0] == 0:
        raise ValueError(f"batch has leaves of shapes {shapes}; one leading axis of observations is wanted.")

    def log_joint(z: Any) -> Float[Array, ""]:
        each = _each("log_likelihood", lambda one: log_likelihood(z, one), batch, 1)
        return log_prior(z) + size / shapes[0][0] * jnp.sum(each)

    return log_joint


def _draw(q: Distribution, key: Any, shape: tuple[int, ...], gradient: str, verb: str) -> tuple[Array, Array]:
    """Draws, (*shape, *event), and their log q, (*shape), with what of their gradients the estimator wants."""
    check_key(key, verb)
    _check_unbatched("q", q)
    if gradient in ("score", "none"):
        if gradient == "score" and shape[0] < 2:
            raise ValueError(
                "draws is 1; gradient='score' wants at least 2, for the baseline of a draw is the mean of the others."
            )
        z = lax.stop_gradient(q.sample(key, shape))
        return z, q.log_prob(z)
    if not q.has_rsample:
        raise ValueError(
            f"q is {type(q).__name__}, whose draws carry no gradient (has_rsample is False), as gradient={gradient!r} "
            "wants. For discrete latents and mixtures pass gradient='score' to elbo."
        )
    if gradient == "path":
        # A flow knows its log density from the way there; the way back may be slow, or unknown.
        z, steps = q.sample_with_intermediates(key, shape)
        return z, q.log_prob(z, steps) if steps else q.log_prob(z)
    z = q.rsample(key, shape)
    return z, _log_prob_of_fixed(q, z)


def _log_prob_of_fixed(q: Distribution, z: Array) -> Array:
    """log q(z) with a gradient by z alone: q's parameters are held, those inside the closure of a transform too."""
    log_q, pullback = jax.vjp(q.log_prob, lax.stop_gradient(z))
    (slope,) = pullback(jnp.ones_like(log_q))
    return _graded(log_q, jnp.sum(lax.stop_gradient(slope) * z, axis=tuple(range(log_q.ndim, z.ndim))))


@jax.custom_jvp
def _graded(value: Array, surrogate: Array) -> Array:
    """The value of the one with the gradient of the other, which has its shape."""
    return value


@_graded.defjvp
def _graded_jvp(primals: tuple, tangents: tuple) -> tuple:
    return primals[0], tangents[1]


def _score(values: Array, log_q: Array, signal: Array) -> Array:
    """The mean of the signal; its gradient by the score function with leave-one-out baseline, and through values."""
    advantage = (signal - jnp.mean(signal)) * (signal.size / (signal.size - 1))
    return _graded(jnp.mean(signal), jnp.mean(values + lax.stop_gradient(advantage) * log_q))


def _log_power_mean(log_w: Float[Array, "*shape K"], power: float) -> Float[Array, "*shape"]:
    r"""$\frac1r \log \frac1K \sum_k w_k^r$ over the last axis, and the mean of $\log w$ for r = 0."""
    if power == 0:
        return jnp.mean(log_w, axis=-1)
    if log_w.shape[-1] == 1:
        return log_w[..., 0]
    largest = jnp.max(log_w, axis=-1) if power > 0 else jnp.min(log_w, axis=-1)
    largest = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    x = power * (log_w - largest[..., None])
    # Each form loses digits where the other keeps them: equal weights the second, one among many the first.
    less_one, mean = jnp.mean(jnp.expm1(x), axis=-1), jnp.mean(jnp.exp(x), axis=-1)
    logarithm = jnp.where(less_one > -0.5, jnp.log1p(jnp.maximum(less_one, -0.5)), jnp.log(mean))
    return largest + logarithm / power


def _each(name: str, function: Callable[[Any], Any], values: Any, axes: int) -> Array:
    """The function of each entry along the leading axes, a scalar each."""
    mapped = function
    for _ in range(axes):
        mapped = jax.vmap(mapped)
    found = mapped(values)
    if jnp.ndim(found) != axes:
        raise ValueError(
            f"{name} returned shape {jnp.shape(found)[axes:]}; a scalar is wanted. Sum over what is independent."
        )
    return found


def _over_event(weights: Array, z: Array) -> Array:
    """Weights with as many axes as z."""
    return weights.reshape(weights.shape + (1,) * (z.ndim - weights.ndim))


def _closed_form(q: Distribution, prior: Distribution) -> Array:
    try:
        return kl(q, prior).value
    except ValueError as error:
        raise ValueError(
            "elbo_with_kl wants the divergence of q from prior in closed form, and none is registered for the two. "
            "closed_form=False takes it by the same draws."
        ) from error


def _check_unbatched(name: str, distribution: Distribution) -> None:
    if distribution.batch_shape:
        raise ValueError(
            f"{name} has batch shape {distribution.batch_shape}; one distribution over one z is wanted, with batch "
            f"shape (). Independent entries of z: .to_event({len(distribution.batch_shape)}). Many data sets: jax.vmap."
        )


def _check_gradient(gradient: Any, known: tuple[str, ...]) -> None:
    if gradient not in known:
        raise ValueError(f"gradient is {gradient!r}; one of {', '.join(map(repr, known))} is wanted.")


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is wanted.")
