"""What fields declare: their supports, checked at the border, and the names of their axes."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from probkit.model import Default, Given, fixed_value, is_place


def declared(model: Any) -> dict[str, tuple[dict, Any]]:
    """The fields made by :func:`param`, by site name: their metadata and what they hold now."""
    out: dict[str, tuple[dict, Any]] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, eqx.Module):
            for field in dataclasses.fields(node):
                held, name = getattr(node, field.name), f"{prefix}{field.name}"
                if "support" in field.metadata:
                    out[name] = (dict(field.metadata), held)
                if not is_place(held):
                    walk(held, prefix if field.name.startswith("_") else f"{name}.")  # as sites are named
        elif isinstance(node, list | tuple | dict):
            for key, held in node.items() if isinstance(node, dict) else enumerate(node):
                walk(held, f"{prefix}{key}.")

    walk(model, "")
    return out


def check_supports(model: Any) -> None:
    """Check that fixed numbers, and the supports of priors, lie in the support that each field declares.

    Raises:
        TypeError: a field holds what is neither a number nor a prior.
        ValueError: naming the field, what it holds and what is wanted.
    """
    for name, (metadata, held) in declared(model).items():
        support = metadata["support"]
        if isinstance(held, Given | Default | jax.core.Tracer) or (held is None and metadata["optional"]):
            continue
        if held is None or isinstance(held, str | bytes | type) or (support is not None and not _holds_numbers(held)):
            raise TypeError(f"{name} is {held!r}; a number, an array or a NumPyro distribution is wanted.")
        if support is None:
            continue
        fixed = fixed_value(held) if isinstance(held, dist.Distribution) else held
        if fixed is None:
            _check_prior(name, held, support)
        elif not np.all(support(np.asarray(fixed))):
            raise ValueError(f"{name} is {fixed}; values in {support} are wanted.")


def _holds_numbers(held: Any) -> bool:
    return isinstance(held, dist.Distribution) or np.asarray(held).dtype.kind in "biuf"


def _check_prior(name: str, prior: dist.Distribution, support: Any) -> None:
    """Check the support of a prior at its middle and towards its ends; discrete priors are refused where fitted."""
    if prior.support is support or prior.is_discrete:
        return
    to_support = dist.biject_to(prior.support)
    far = 30.0 if prior.support.event_dim == 0 else 5.0
    shape = to_support.inverse_shape(prior.shape())
    probes = [to_support(jnp.full(shape, x, jnp.result_type(float))) for x in (-far, 0.0, far)]
    if not all(np.all(support(p)) for p in probes):
        raise ValueError(
            f"{name} takes values in {support}; its prior {type(prior).__name__} has support {prior.support}."
        )
