"""The entries of statsmodels' UnobservedComponents in the shared references, as models of ours."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
from helpers import shared

import probkit as pk


@functools.cache
def entries():
    """Trusted entries by id. A damped cycle with a flat start is another model than ours."""
    held = json.loads(shared("reference/statsmodels_uc.json").read_text())
    usable = lambda e: e["trusted"] and not (e["spec"].get("cycle") and e["init"] != "stationary_cycle")
    return {e["id"]: e | {"source": held["series"][e["series"]]} for e in held["uc"] if usable(e)}


def data(entry):
    """y, X and the inputs of the eight times to come."""
    frame = pd.read_csv(shared("data/ts/" + entry["source"]["file"]))
    y = frame["y"].to_numpy(float)
    y = np.log(y) if entry["source"]["log"] else y
    exog, later = entry["spec"].get("exog"), entry.get("exog_future")
    if exog == "seatbelts":
        return y, np.stack([frame["law"], np.log(frame["PetrolPrice"])], 1), np.array(later)
    if exog == "step1899":
        return y, (frame["ds"].astype(str).str[:4].astype(int) >= 1899).to_numpy(float)[:, None], np.ones((8, 1))
    return y, None, None


def model(entry, values=None):
    """The entry's model: at the given parameters, or with priors on them."""
    spec, names = entry["spec"], entry["param_names"]
    at = dict(zip(names, values, strict=True)) if values is not None else {}

    def scale(name):
        if not any(one.startswith(f"sigma2.{name}") for one in names):
            return 0.0
        return next((np.sqrt(at[one]) for one in at if one.startswith(f"sigma2.{name}")), None)

    def build(cls, *args, **fields):
        return cls(*args, **{name: value for name, value in fields.items() if value is not None})

    obs = scale("irregular")
    if spec["level"] in ("llevel", "dconstant"):
        total = build(pk.LocalLevel, level_scale=scale("level"), obs_scale=obs)
    else:
        steps = {"level_scale": scale("level"), "slope_scale": scale("trend")}
        total = build(pk.LocalLinearTrend, **steps, obs_scale=obs)
    if "seasonal" in spec:
        total = total + build(pk.Seasonal, spec["seasonal"], scale=scale("seasonal"))
    for one in spec.get("freq_seasonal", []):
        total = total + build(pk.TrigonometricSeasonal, one["period"], one["harmonics"], scale=scale("freq_seasonal"))
    if spec.get("cycle"):
        turn = 2 * np.pi / at["frequency.cycle"] if at else None
        total = total + build(pk.Cycle, turn, damping=at.get("damping.cycle"), scale=scale("cycle")) if at else (
            total + pk.Cycle()
        )  # fmt: skip
    if "autoregressive" in spec:
        order = spec["autoregressive"]
        phi = np.array([at[f"ar.L{i + 1}"] for i in range(order)]) if at else None
        total = total + build(pk.Autoregression, order, coefficients=phi, scale=scale("ar"))
    if "exog" in spec:
        beta = [name for name in names if name.startswith("beta")]
        wide = dist.Normal(0.0, 1e4).expand([len(beta)]).to_event(1)
        total = total + pk.Regression((np.array([at[b] for b in beta]) if at else wide) if beta else None)
    return total


def label(state):
    """Our name for one of statsmodels' states; None for those that we hold in other coordinates."""
    plain = {"level": "level", "trend": "slope", "seasonal": "season", "cycle": "cycle", "ar.L1": "autoregression"}
    if state.startswith("beta.x"):
        return f"regression.coefficient_{state[6:]}"
    return plain.get(state)


def as_inputs(X):
    return None if X is None else jnp.asarray(X)
