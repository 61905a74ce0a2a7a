"""Several series with the same parts, whose disturbances are correlated: seemingly unrelated structural series."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
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
from probkit.ssm.several_distribution import Correlations, Loadings, MultivariateSeries
from probkit.ssm.several_model import SeveralSeries, noises
from probkit.ssm.statespace import StateSpace
from probkit.ssm.structural import Additive, Component, places, quiet

#: The key of the observation noise among `correlations`.
NOISE = "noise"


def _lkj(self: Any, y: Any, X: Any) -> dist.Distribution:
    return Correlations(int(y.shape[1]), 2.0)


@dataclasses.dataclass(frozen=True)
class _EachSeries:
    """The default of a scale, half-normal in every series; equal where its function is, so nothing recompiles."""

    fn: Any

    def __call__(self, module: Any, y: Any, X: Any) -> dist.Distribution:
        scale = jax.vmap(lambda one: self.fn(module, one, X).scale, in_axes=1)(y)
        return dist.HalfNormal(scale).to_event(1)


@dataclasses.dataclass(frozen=True)
class _CommonLoadings:
    """The default of common disturbances: the scale's default in each series as the spread of its loadings."""

    fn: Any
    rank: int

    def __call__(self, module: Any, y: Any, X: Any) -> dist.Distribution:
        return Loadings(jax.vmap(lambda one: self.fn(module, one, X).scale, in_axes=1)(y), self.rank)


class MultivariateStructural(SeveralSeries):
    """Several series with the same parts, whose disturbances and noise are correlated across series.

    ``pk.MultivariateStructural(pk.LocalLevel() + pk.Seasonal(12))`` with y (time, series), NaN anywhere: seemingly
    unrelated time series equations. Each series has its own level, season ... and its own scales; every scale of a
    part, and the noise, has a correlation matrix over the series. Damping, period and coefficients of a part are those
    of all series ("similar cycles"). What starts flat in one series starts flat in each.

    A scale given as a number or a prior of shape () is that of all series, one of shape (series,) gives each its own.
    Sites: those of the parts (`level.level_scale`, (series,)), `obs_scale`, and `correlations.level`, ...: partial
    correlations in the order (2, 1), (3, 1), (3, 2), ..., for two series the correlation; ``posterior.draws
    .correlation("level")`` are the matrices.

    Args:
        parts: a part or a sum of parts, without an `obs_scale`.
        obs_scale: standard deviation of the noise of each series, (series,). Default: half-normal with the spread of
            each, cut off below at its rounding error.
        correlations: which disturbances are correlated. None, the default, is all: every part that moves, by its name
            (`trend.level` and `trend.slope` where a part has two scales), and ``"noise"``. A sequence of such names, or
            a dictionary of names with priors (`pk.ssm.Correlations`) or fixed
            correlation matrices; what is not named is independent. Default prior: LKJ with concentration 2.
        common: name -> rank: that part's disturbances are those of `rank` common ones, fewer than the series, times
            `loadings` (zero above the diagonal and positive on it) instead of scales: common levels, with a starting
            level of each series. Site `loadings.level`: the free loadings, column by column.

    ``posterior.components()`` holds ``level.<series>``, ``signal.<series>``, ...; forecasts and predictions have the
    series as lanes; leave-one-out terms are of single entries given all others, those of other series too.

    References:
        Harvey (1989), Forecasting, Structural Time Series Models and the Kalman Filter, chapter 8. Harvey and Koopman
        (1997), Multivariate structural time series models.
    """

    _parts: dict[str, Component]
    obs_scale: Param = param(dims=("series",), support=constraints.nonnegative, default=noises)
    correlations: dict[str, Any] = eqx.field(default_factory=dict)
    loadings: dict[str, Any] = eqx.field(default_factory=dict)
    _scales: tuple[tuple[str, str, str], ...] = eqx.field(static=True, default=())

    def __init__(
        self,
        parts: Additive,
        *,
        obs_scale: Any = None,
        correlations: Mapping[str, Any] | Sequence[str] | None = None,
        common: Mapping[str, int] | None = None,
    ):
        if not isinstance(parts, Additive):
            raise TypeError(f"parts is {type(parts).__name__}; a part or a sum of parts is wanted, as pk.LocalLevel().")
        if not isinstance(getattr(parts, "obs_scale", None), Default):
            raise ValueError("parts has an obs_scale; give MultivariateStructural(parts, obs_scale=...) instead.")
        held = quiet(parts)
        if any(getattr(part, "coefficients", None) is not None and part.takes_X for part in held.values()):
            raise TypeError("pk.Regression has coefficients; in several series they are states: leave None.")
        self._scales = tuple(_live(held))
        common = dict(common or {})
        names = [label for label, _, _ in self._scales]
        _check_names("common", common, names)
        if correlations is None:
            correlations = [name for name in (*names, NOISE) if name not in common]
        _check_names("correlations", correlations, [name for name in (*names, NOISE) if name not in common])
        given = correlations if isinstance(correlations, Mapping) else dict.fromkeys(correlations)
        self.correlations = {name: _correlation(name, one) for name, one in given.items()}
        self.loadings = {}
        for label, name, field in self._scales:
            scale = getattr(held[name], field)
            if label in common:
                self.loadings[label] = _common(label, common[label], scale)
                scale = 0.0
            elif isinstance(scale, Default):
                scale = Default(_EachSeries(scale.fn))
            held[name] = _with(held[name], field, scale)
        self._parts = held
        self.obs_scale = Default(noises) if obs_scale is None else obs_scale

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._parts:
            return self._parts[name]
        raise AttributeError(f"{type(self).__name__} has no part or field {name!r}.")

    def parts(self) -> dict[str, Component]:
        """The parts by name."""
        return self._parts

    def correlation(self, name: str) -> Float[Array, "*draws p p"]:
        """The correlation matrix across series of one of `correlations`; of a posterior's draws, one for each.

        Raises:
            KeyError: the disturbances of that name are not correlated.
        """
        if name not in self.correlations:
            raise KeyError(f"{name!r} is not among the correlated: {list(self.correlations)}.")
        partial = jnp.asarray(self.correlations[name])
        L = several.correlation_factor(partial, several.series_of(partial))
        return L @ jnp.swapaxes(L, -1, -2)

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse one series alone, inputs without a taker, and parameters of another number of series."""
        super().check_data(y, X)
        takers = [name for name, part in self._parts.items() if part.takes_X]
        if (X is None) == bool(takers):
            wanted = f"{takers[0]} needs inputs: pass X." if takers else "it takes no X; add pk.Regression() for that."
            raise TypeError(f"{type(self).__name__}: {wanted}")
        p = y.shape[1]
        scales = {label: getattr(self._parts[part], field) for label, part, field in self._scales}
        for name, held in {**scales, "obs_scale": self.obs_scale}.items():
            if not isinstance(held, Default) and _shape(held) not in ((), (p,)):
                raise ValueError(f"{name} has shape {_shape(held)}; y has {p} series, so () or ({p},) is wanted.")
        for name, held in self.correlations.items():
            if not isinstance(held, Default) and _shape(held) != (p * (p - 1) // 2,):
                raise ValueError(f"correlations[{name!r}] is not of the {p} series of y.")
        if NOISE in self.correlations:
            _check_sums(np.asarray(y, float))

    def starts(self, y: Any, X: Any) -> tuple[dict[str, Any], ...]:
        """Where a search for the mode should begin too: places that parts know of, for all series together."""
        held = {f"{part}.{field}": getattr(self._parts[part], field) for _, part, field in self._scales}
        shared = [site for site, one in held.items() if not isinstance(one, Default) and _shape(one) == ()]
        whole = lambda site, value: jnp.median(value) if site in shared else value
        found = places(self._parts, y)
        return tuple({site: whole(site, value) for site, value in one.items()} for one in found)

    def series_sites(self) -> tuple[str, ...]:
        """Sites with an entry for each series, beside `obs_scale`."""
        return tuple(f"{part}.{field}" for _, part, field in self._scales)

    def distribution(self, X: Any, length: int) -> MultivariateSeries:
        """The distribution of y, (time, series), given the parameters of all parts."""
        return self._law(X, length, length)

    def _law(self, X: Any, length: int, fitted: int) -> MultivariateSeries:
        p = self._series()
        dtype = jnp.result_type(float, *(x for x in jax.tree.leaves((self.obs_scale, X)) if isinstance(x, jax.Array)))
        dtype = jnp.asarray(self.obs_scale).dtype if isinstance(self.obs_scale, jax.Array) else dtype
        base, *units = (
            components.assemble(list(self._blocks(X, length, fitted, one).values()), 0.0, dtype)
            for one in (None, *(label for label, _, _ in self._scales))
        )
        S = [self._covariance(label, getattr(self._parts[part], field), p) for label, part, field in self._scales]
        H = self._covariance(NOISE, self.obs_scale, p)
        model, start = several.seemingly_unrelated(base, units, [one.astype(dtype) for one in S], H.astype(dtype))
        m = base.q.shape[0]
        levels = None if base.level is None else tuple(i * m + base.level for i in range(p))
        return MultivariateSeries(model, start, base, tuple(np.repeat(np.arange(p), m).tolist()), levels, length)

    def _covariance(self, label: str, scale: Any, p: int) -> Float[Array, "p p"]:
        if label in self.loadings:
            root = self.loading_matrix(label, p)
            return root @ root.T
        scale = jnp.broadcast_to(jnp.asarray(scale), (p,))
        if label not in self.correlations:
            return jnp.diag(scale * scale)
        root = scale[:, None] * several.correlation_factor(jnp.asarray(self.correlations[label]), p)
        return root @ root.T

    def loading_matrix(self, name: str, series: int) -> Float[Array, "*draws p k"]:
        """The loadings of one of `common` as a matrix, one for each of a posterior's draws."""
        free = jnp.asarray(self.loadings[name])
        counts = [k for k in range(1, series + 1) if series * k - k * (k - 1) // 2 == free.shape[-1]]
        return several.loading_matrix(free, series, counts[0])

    def _series(self) -> int:
        """How many series the parameters are of."""
        held = [self.obs_scale, *(getattr(self._parts[part], field) for _, part, field in self._scales)]
        sizes = {jnp.shape(x)[-1] for x in held if jnp.ndim(x)}
        sizes |= {several.series_of(x) for x in self.correlations.values()}
        if len(sizes) != 1:
            raise ValueError(
                f"The parameters are of {sorted(sizes) or 'no'} series; one number is wanted: give obs_scale (series,)."
            )
        return sizes.pop()

    def _blocks(self, X: Any, length: int, fitted: int, one: str | None) -> dict[str, components.Block]:
        """The block of every part in one series, all scales at 0 but that labelled `one`, which is 1."""
        X = X[:, None] if X is not None and X.ndim == 1 else X
        found = {}
        for name, part in self._parts.items():
            for field in part.scales:
                here = any(label == one and (at, f) == (name, field) for label, at, f in self._scales)
                part = _with(part, field, 1.0 * here)
            found[name] = part.block(X, np.arange(length), fitted)
        return found

    def state_sizes(self, X: Any, length: int) -> Array:
        """The sizes of the columns of X, by which coefficients are multiplied to make states."""
        held = self._blocks(X, length, length, None).values()
        one = jnp.concatenate([jnp.broadcast_to(jnp.asarray(b.size), (len(b.flat),)) for b in held])
        return jnp.tile(one, self._series())

    def forecast(self, y: Float[Array, "n p"], horizon: int, X: Any = None, X_new: Any = None) -> LinearGaussian:
        """The joint distribution of the next ``horizon`` observations, given ``y`` and the parameters."""
        n = y.shape[0]
        whole = self._law(None if X is None else jnp.concatenate([X, X_new]), n + horizon, n).model
        later = lambda x: x if jnp.ndim(x) == 2 else jnp.asarray(x)[n:]
        future = StateSpace(later(whole.Z), whole.H, whole.T, None, later(whole.Q))
        return self.distribution(X, n).forecast(y, horizon, future=future)

    def decompose(self, y: Float[Array, "n p"], X: Any, key: Array) -> dict[str, tuple[Array, Array, Array]]:
        """What every part adds to each series, and its inner states, given y: mean, standard deviation, one draw."""
        (n, p), blocks = y.shape, self._blocks(X, y.shape[0], y.shape[0], None)
        law = self.distribution(X, n)
        m, at, forms = law.base.q.shape[0], 0, {"signal": jnp.broadcast_to(law.base.z, (n, law.base.q.shape[0]))}
        for name, part in self._parts.items():
            size = len(blocks[name].flat)
            held = {name: blocks[name].z} | {f"{name}.{k}": z for k, z in part.inner(blocks[name]).items()}
            for label, z in held.items():
                z = jnp.broadcast_to(jnp.asarray(z, y.dtype), (n, size))
                forms[label] = jnp.pad(z, ((0, 0), (at, m - at - size)))
            at += size
        rows = jnp.einsum("ik,ctm->tcikm", jnp.eye(p, dtype=y.dtype), jnp.stack(list(forms.values())))
        mean, variance, draw = law.signals(key, y, rows.reshape(n, len(forms) * p, p * m))
        apart = lambda x, i: x[:, i * p : (i + 1) * p]
        return {label: (apart(mean, i), jnp.sqrt(apart(variance, i)), apart(draw, i)) for i, label in enumerate(forms)}


def _live(parts: Mapping[str, Component]) -> list[tuple[str, str, str]]:
    """Label, part and field of every scale that is not the number 0."""
    found = []
    for name, part in parts.items():
        fields = [f for f in part.scales if not (isinstance(held := getattr(part, f), int | float) and held == 0)]
        found += [(name if len(fields) == 1 else f"{name}.{f.removesuffix('_scale')}", name, f) for f in fields]
    return found


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Default | dist.Distribution)


def _with(part: Component, field: str, value: Any) -> Component:
    return eqx.tree_at(operator.attrgetter(field), part, value, is_leaf=_is_leaf)


def _shape(held: Any) -> tuple[int, ...]:
    return tuple(held.shape() if isinstance(held, dist.Distribution) else jnp.shape(held))


def _check_sums(y: np.ndarray) -> None:
    """Refuse series that are sums of one another: all correlations then go to 1, where no posterior is proper."""
    rows = y[~np.isnan(y).any(axis=1)]
    if len(rows) <= y.shape[1] + 1:
        return
    rows = rows - rows.mean(axis=0)
    size = np.sqrt(np.mean(rows**2, axis=0))
    kept = np.flatnonzero(size > 0)
    _, singular, directions = np.linalg.svd(rows[:, kept] / size[kept], full_matrices=False)
    if len(kept) > 1 and singular[-1] < 1e-6 * singular[0]:
        involved = kept[np.abs(directions[-1]) > 0.05].tolist()
        raise ValueError(
            f"The columns {involved} of y are sums or multiples of one another; leave one out, or name in "
            "correlations= what may be correlated, without 'noise'."
        )


def _check_names(argument: str, given: Any, known: Sequence[str]) -> None:
    wrong = [name for name in given if name not in known]
    if wrong:
        raise ValueError(f"{argument} names {wrong[0]!r}; the disturbances that it may name are {list(known)}.")


def _correlation(name: str, held: Any) -> Any:
    """A default, a prior, or a fixed matrix as its partial correlations."""
    if held is None:
        return Default(_lkj)
    if isinstance(held, Correlations | Default):
        return held
    if isinstance(held, dist.Distribution):
        raise TypeError(
            f"correlations[{name!r}] is {type(held).__name__}; a law of partial correlations is wanted: "
            "pk.ssm.Correlations(series, concentration)."
        )
    matrix = np.asarray(held, float)
    sound = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and np.allclose(matrix, matrix.T)
    if not sound or not np.allclose(np.diag(matrix), 1) or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise ValueError(f"correlations[{name!r}] is no correlation matrix: symmetric, 1 on the diagonal, definite.")
    return several.partial_correlations(matrix)


def _common(label: str, rank: Any, scale: Any) -> Any:
    """The loadings of common disturbances: by default from the default of the scale."""
    if isinstance(rank, Loadings):
        return rank
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"common[{label!r}] is {rank!r}; a number of common disturbances, at least 1, is wanted.")
    if not isinstance(scale, Default):
        raise ValueError(f"{label} was given a scale and is common: its loadings take the place of the scale.")
    return Default(_CommonLoadings(scale.fn, rank))
