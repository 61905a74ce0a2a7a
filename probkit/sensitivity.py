"""Prior sensitivity by power-scaling: which posteriors lean on the prior, and which pull against it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probkit.export import parameters
from probkit.infer.target import Target

if TYPE_CHECKING:
    from probkit.posterior import Posterior


def sensitivity(posterior: "Posterior", prior_var_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
    """The table of sensitivities of a posterior; see :meth:`probkit.Posterior.sensitivity`."""
    if not posterior.sites:
        raise TypeError("The model holds no prior, so there is nothing that could be sensitive to one.")
    if not posterior.targets_posterior:
        raise TypeError(
            f"sensitivity weighs draws of the posterior, and {type(posterior.method).__name__} does not give them; fit "
            "with Auto(), Laplace() or NUTS()."
        )
    import arviz_base
    import arviz_stats

    scaled = _scaled(posterior.target, prior_var_names)
    priors, likelihood = _parts(posterior.target, posterior._flat())
    prior = np.sum([np.asarray(priors[name], np.float64) for name in scaled], axis=0)
    terms = {"log_prior": prior, "log_likelihood": np.asarray(likelihood, np.float64)}
    shape = posterior._shape()
    tree = parameters(posterior)
    groups = {group: {"total": _untied(value).reshape(shape)} for group, value in terms.items()}
    tree.update(arviz_base.from_dict(groups).children)
    return arviz_stats.psense_summary(tree, **kwargs)


def _scaled(target: Target, names: Sequence[str] | None) -> list[str]:
    """The sites whose priors are scaled: those named, or those of the top level."""
    if names is None:
        lower = target.hierarchical()
        return [name for name in target.sites() if name not in lower]
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in target.sites()]
    if unknown or not names:
        raise ValueError(f"prior_var_names is {names}; some of the sites {list(target.sites())} are wanted.")
    return names


def _untied(value: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """The same log density, ties broken by at most 1e-6 nats.

    ArviZ fails where all the largest are equal, as under flat priors, and under weak ones in single precision.
    """
    golden = 0.5 * (np.sqrt(5.0) - 1.0)  # multiples fill (0, 1) evenly, in an order that follows nothing
    return value + 1e-6 * (golden * np.arange(len(value)) % 1.0)


@eqx.filter_jit
def _parts(target: Target, values: dict[str, Any]) -> tuple[dict[str, Array], Float[Array, " S"]]:
    """Log prior of every site, and the joint log-likelihood, of every draw: (S,) each."""
    target = target.resolved()

    def one(v: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        priors: dict[str, Array] = {}

        def look(name: str, law: dist.Distribution, scale: Any = None) -> Array:
            priors[name] = jnp.sum(law.log_prob(v[name])) * (1.0 if scale is None else scale)
            return v[name]

        likelihood, _ = target.execute(look)
        return priors, likelihood

    return target.map(one, values)
