"""Posteriors on disk: one file of arrays and JSON, never code.

The file is an ``.npz`` archive (``numpy.load`` opens it) that holds every array and a JSON manifest, followed by a tag
and the SHA-256 of all before it. Loading rebuilds probkit's own classes and NumPyro's distributions by name; user nets,
functions and ``given`` places come back through ``like=``.
"""

import dataclasses
import hashlib
import importlib
import inspect
import io
import json
import operator
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.truncated import (
    LeftTruncatedDistribution,
    RightTruncatedDistribution,
    TwoSidedTruncatedDistribution,
)
from numpyro.infer import autoguide

from probkit.border import Panel, Series
from probkit.infer.method import Outcome
from probkit.infer.target import Lanes, Target
from probkit.lanes import LanePosterior
from probkit.model import Default, strong
from probkit.posterior import Posterior
from probkit.report import Report, Seconds

FORMAT = 1
TAG = b"probkit-posterior"


def save(posterior: Posterior | LanePosterior, path: Any) -> Path:
    """Write a posterior to one file, equal to the bit when it is loaded.

    Args:
        posterior: what ``fit`` returned, for one series or for many.
        path: the file; ``.npz`` is added where there is no suffix.

    Returns:
        The path written.

    Raises:
        TypeError: the method holds a function (a guide made by one), which a file cannot hold.
    """
    arrays: dict[str, np.ndarray] = {}
    held = _opaque(_encode(posterior.method, {}))
    if held:
        raise TypeError(f"The method holds {held}, which a file cannot hold; NumPyro's own guides by their class can.")
    manifest = {
        "format": FORMAT,
        "probkit": version("probkit"),
        "method": _encode(posterior.method, arrays),
        "values": _encode(posterior.outcome.values, arrays),
        "stats": _encode(posterior.outcome.stats, arrays),
        "standard_errors": _encode(posterior.outcome.standard_errors, arrays),
        "report": _encode_report(posterior.report, arrays),
        "key": {"impl": str(jax.random.key_impl(posterior.key)), "data": jax.random.key_data(posterior.key).tolist()},
    }
    if isinstance(posterior, LanePosterior):
        lanes, panel = posterior.lanes, posterior.panel
        manifest |= {
            "model": _encode(lanes.model, arrays),
            "args": _encode((lanes.y, lanes.X), arrays),
            "series": _encode_series(Series(panel.y, panel.labels, panel.label_name), arrays),
            "names": _encode(panel.names, arrays),
            "unusable": _encode(panel.unusable, arrays),
            "reports": [_encode_report(one, arrays) for one in posterior.reports],
        }
    else:
        manifest |= {
            "model": _encode(posterior.target.model, arrays),
            "learned": {name: _encode(getattr(posterior.target.model, name), arrays) for name in _learned(posterior)},
            "args": _encode(posterior.target.args, arrays),
            "kwargs": _encode(posterior.target.kwargs, arrays),
            "series": None if posterior.series is None else _encode_series(posterior.series, arrays),
        }
    path = Path(path)
    return write(path if path.suffix else path.with_suffix(".npz"), manifest, arrays)


def load(path: Any, like: Any = None) -> Posterior | LanePosterior:
    """Read a posterior that :func:`save` wrote.

    Args:
        path: the file.
        like: the model or function that was fitted, where it holds what a file cannot: a user's class, a function, a
            ``given`` place, a distribution that probkit does not write.

    Raises:
        ValueError: the file is not a posterior, is damaged, was written by a newer probkit, or needs ``like``.
    """
    manifest, arrays = read(path)
    if manifest["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']} (probkit {manifest['probkit']}); this one reads up to {FORMAT}. "
            "Update probkit."
        )
    return _rebuild(path, manifest, arrays, like)


def write(path: Path, manifest: dict, arrays: dict[str, np.ndarray]) -> Path:
    """Write arrays, what JSON holds and a checksum to one file, all or nothing: a reader never meets half of it."""
    text = json.dumps(manifest).encode()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, manifest=np.frombuffer(text, np.uint8), **arrays)
    body = buffer.getvalue() + TAG
    part = path.with_name(path.name + ".part")
    part.write_bytes(body + hashlib.sha256(body).digest())
    part.replace(path)
    return path


def read(path: Any) -> tuple[dict, dict[str, np.ndarray]]:
    """What :func:`write` wrote.

    Raises:
        ValueError: the file is none of these, or is damaged.
    """
    content = Path(path).read_bytes()
    body, digest = content[:-32], content[-32:]
    if not body.endswith(TAG) and TAG not in content[-200:]:
        raise ValueError(f"{path} is not a posterior saved by probkit (or its end is missing).")
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{path} is damaged: its content does not agree with its checksum.")
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("manifest").tobytes()), arrays


def _rebuild(path: Any, manifest: dict, arrays: dict, like: Any) -> Posterior | LanePosterior:
    args = _decode(manifest["args"], arrays, device=True)
    if like is not None:
        model = strong(like, args[0].dtype) if isinstance(like, eqx.Module) else like
        model = _with_learned(path, model, manifest.get("learned", {}), arrays)
    else:
        missing = _opaque(manifest["model"])
        if missing:
            raise ValueError(f"{path} holds {missing}, which a file cannot rebuild; pass like= with the model fitted.")
        model = _decode(manifest["model"], arrays, device=True)
    many = "reports" in manifest
    if many:
        lanes = Lanes(model, *args)
        target = lanes.lane(0)
    else:
        target = Target(model, args, _decode(manifest["kwargs"], arrays, device=True))
    values = _decode(manifest["values"], arrays)
    if like is not None:
        wanted = {name: shape for name, (shape, _) in target.sites().items()}
        found = {name: v.shape[3 if many else 2 :] for name, v in values.items()}
        if any(found.get(name) != shape for name, shape in wanted.items()):
            raise ValueError(f"like has the sites {wanted}; {path} holds {found}.")
    stats, errors = _decode(manifest["stats"], arrays), _decode(manifest["standard_errors"], arrays)
    outcome = Outcome(values, stats, _decode_report(manifest["report"], arrays), errors)
    method = _decode(manifest["method"], arrays)
    key = jax.random.wrap_key_data(jnp.asarray(manifest["key"]["data"], jnp.uint32), impl=manifest["key"]["impl"])
    series = None if manifest["series"] is None else _decode_series(manifest["series"], arrays)
    if series is None or not many:
        return Posterior(target, method, outcome, key, series)
    names, unusable = _decode(manifest["names"], arrays), _decode(manifest["unusable"], arrays)
    panel = Panel(series.y, series.labels, series.label_name, names, unusable)
    reports = tuple(_decode_report(one, arrays) for one in manifest["reports"])
    return LanePosterior(lanes, method, outcome, reports, key, panel)


def _learned(posterior: Posterior) -> tuple[str, ...]:
    """Fields that the fit filled beside the sites: no ``like`` has them."""
    return getattr(posterior.target.model, "learned", ())


def _with_learned(path: Any, like: Any, learned: dict, arrays: dict[str, np.ndarray]) -> Any:
    """``like`` with the fields that a fit filled beside the sites."""
    wanted = getattr(like, "learned", ())
    if set(wanted) != set(learned):
        raise ValueError(f"like, {type(like).__name__}, learns {list(wanted)} in a fit; {path} holds {list(learned)}.")
    for name in wanted:
        value = _decode(learned[name], arrays, device=True)
        like = eqx.tree_at(operator.attrgetter(name), like, value, is_leaf=lambda x: x is None)
    return like


def _encode_report(report: Report, arrays: dict[str, np.ndarray]) -> dict:
    fields = {f.name: getattr(report, f.name) for f in dataclasses.fields(Report)}
    return _encode(fields | {"seconds": dataclasses.asdict(report.seconds)}, arrays)


def _decode_report(node: dict, arrays: dict[str, np.ndarray]) -> Report:
    fields = _decode(node, arrays)
    return Report(**fields | {"seconds": Seconds(**fields["seconds"]), "notes": tuple(fields["notes"])})


# -- trees ------------------------------------------------------------------------------------------------------------

_WRAPPERS: dict[str, tuple[type, tuple[str, ...], tuple[str, ...]]] = {
    "Independent": (dist.Independent, ("base_dist",), ("reinterpreted_batch_ndims",)),
    "ExpandedDistribution": (dist.ExpandedDistribution, ("base_dist",), ("batch_shape",)),
    "LeftTruncatedDistribution": (LeftTruncatedDistribution, ("base_dist", "low"), ()),
    "RightTruncatedDistribution": (RightTruncatedDistribution, ("base_dist", "high"), ()),
    "TwoSidedTruncatedDistribution": (TwoSidedTruncatedDistribution, ("base_dist", "low", "high"), ()),
}
_PLAIN = {
    dist.Normal,
    dist.HalfNormal,
    dist.LogNormal,
    dist.Cauchy,
    dist.HalfCauchy,
    dist.StudentT,
    dist.Laplace,
    dist.Logistic,
    dist.Gamma,
    dist.InverseGamma,
    dist.Exponential,
    dist.Beta,
    dist.Pareto,
    dist.Dirichlet,
    dist.Uniform,
    dist.Weibull,
    dist.Gumbel,
    dist.Chi2,
    dist.Kumaraswamy,
    dist.LKJCholesky,
    dist.VonMises,
}


#: NumPyro's guides, by their class.
_GUIDES = [cls for cls in vars(autoguide).values() if isinstance(cls, type) and issubclass(cls, autoguide.AutoGuide)]


def _encode(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A node of a pytree as JSON, its arrays put in ``arrays``; what cannot be written is marked opaque."""
    if node is None or isinstance(node, bool | int | float | str):
        return {"value": node}
    if isinstance(node, np.ndarray | np.generic | jax.Array):
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(node)
        return {"array": name}
    if isinstance(node, dict):
        return {"dict": [[key, _encode(held, arrays)] for key, held in node.items()]}
    if isinstance(node, list | tuple):
        return {"list" if isinstance(node, list) else "tuple": [_encode(held, arrays) for held in node]}
    if isinstance(node, Default):
        return _encode_default(node.fn)
    if isinstance(node, dist.Distribution):
        return _encode_law(node, arrays)
    if any(node is guide for guide in _GUIDES):
        return {"guide": node.__name__}
    cls = type(node)
    if cls.__module__.startswith("probkit.") and dataclasses.is_dataclass(node):
        held = [f.name for f in dataclasses.fields(node) if f.init or isinstance(node, eqx.Module)]
        fields = {name: _encode(getattr(node, name), arrays) for name in held}
        return {"class": [cls.__module__, cls.__qualname__], "fields": fields}
    return {"opaque": getattr(node, "__name__", cls.__name__)}


def _encode_default(fn: Any) -> dict:
    """A default by the name of its function, or as that of its field; one made by another model is opaque."""
    if not inspect.isfunction(fn):
        return {"opaque": f"a default made by {type(fn).__name__}"}
    named = fn.__module__.startswith("probkit.") and getattr(sys.modules[fn.__module__], fn.__name__, None) is fn
    return {"default": [fn.__module__, fn.__name__] if named else True}


def _encode_law(law: dist.Distribution, arrays: dict[str, np.ndarray]) -> dict:
    name = type(law).__name__
    if name in _WRAPPERS and type(law) is _WRAPPERS[name][0]:
        _, held, static = _WRAPPERS[name]
        fields = {f: _encode(getattr(law, f), arrays) for f in (*held, *static)}
        return {"law": name, "fields": fields}
    if type(law) in _PLAIN:
        return {"law": name, "fields": {f: _encode(getattr(law, f), arrays) for f in law.arg_constraints}}
    if type(law).__module__.startswith("probkit."):  # ours are made from what they hold
        taken = [one for one in inspect.signature(type(law)).parameters if one != "validate_args"]
        fields = {one: _encode(getattr(law, one), arrays) for one in taken}
        return {"own": [type(law).__module__, name], "fields": fields}
    if type(law) is dist.MultivariateNormal:
        return {"law": name, "fields": {f: _encode(getattr(law, f), arrays) for f in ("loc", "scale_tril")}}
    return {"opaque": name}


def _decode(node: dict, arrays: dict[str, np.ndarray], device: bool = False) -> Any:
    """The inverse of :func:`_encode`; arrays go to the device where ``device`` is set."""
    (kind, held), *_ = node.items()
    if kind == "value":
        return held
    if kind == "array":
        return jnp.asarray(arrays[held]) if device else arrays[held]
    if kind == "dict":
        return {key: _decode(one, arrays, device) for key, one in held}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_decode(one, arrays, device) for one in held)
    if kind == "guide":
        return next(guide for guide in _GUIDES if guide.__name__ == held)
    if kind == "default":
        return Default(_named(*held))
    fields = {f: _decode(one, arrays, device) for f, one in node["fields"].items() if one.get("default") is not True}
    if kind == "law":
        return (_WRAPPERS[held][0] if held in _WRAPPERS else getattr(dist, held))(**fields)
    cls = _named(*held)
    return _module(cls, fields) if issubclass(cls, eqx.Module) else cls(**fields)


def _named(module: str, name: str) -> Any:
    """A class or function of probkit by its name in a file."""
    if not module.startswith("probkit."):
        raise ValueError(f"the file names {module}.{name}, which is not probkit's.")
    return getattr(importlib.import_module(module), name)


def _module(cls: type, fields: dict[str, Any]) -> Any:
    """A module from its fields, as JAX rebuilds one: its ``__init__`` may take other arguments. Others are defaults."""
    made: Any = object.__new__(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in fields:
            value = fields[field.name]
        else:
            value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        object.__setattr__(made, field.name, value)
    return made


def _opaque(node: Any) -> str:
    """The name of the first thing in an encoded tree that a file cannot rebuild, or an empty string."""
    if isinstance(node, dict):
        if "opaque" in node:
            return str(node["opaque"])
        return next((found for held in node.values() if (found := _opaque(held))), "")
    if isinstance(node, list):
        return next((found for held in node if (found := _opaque(held))), "")
    return ""


# -- labels -----------------------------------------------------------------------------------------------------------


def _encode_series(series: Series, arrays: dict[str, np.ndarray]) -> dict:
    import pandas as pd

    labels, kind, freq = series.labels, "none", None
    if isinstance(labels, pd.DatetimeIndex | pd.PeriodIndex):
        kind = "dates" if isinstance(labels, pd.DatetimeIndex) else "periods"
        freq, arrays["labels"] = labels.freqstr, np.asarray(labels.astype(str), dtype=str)
    elif labels is not None:
        values = np.asarray(labels)
        kind = "numbers" if values.dtype.kind in "biuf" else "strings"
        arrays["labels"] = values if kind == "numbers" else values.astype(str)
    return {
        "y": _encode(np.asarray(series.y), arrays),
        "labels": kind,
        "freq": freq,
        "label_name": series.label_name,
        "name": series.name,
    }


def _decode_series(manifest: dict, arrays: dict[str, np.ndarray]) -> Series:
    import pandas as pd

    kind, labels = manifest["labels"], arrays.get("labels")
    name = manifest["label_name"]
    if kind == "dates":
        labels = pd.DatetimeIndex(labels, freq=manifest["freq"], name=name)
    elif kind == "periods":
        labels = pd.PeriodIndex(labels, freq=manifest["freq"], name=name)
    elif labels is not None:
        labels = pd.Index(labels, name=name)
    return Series(_decode(manifest["y"], arrays, device=True), labels, name, manifest["name"])
