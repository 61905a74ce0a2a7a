"""Sample autocorrelations, partial ones and the Dickey-Fuller test, against statsmodels."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from statsmodels.tsa import stattools

import probkit as pk
from probkit.arima import correlations, unit_roots

Y = np.random.default_rng(0).normal(size=90)
GAPS = np.where(np.isin(np.arange(90), [3, 4, 40]), np.nan, Y)

pytestmark = pytest.mark.once


def test_autocorrelations():
    panel = pk.arima.acf(np.stack([Y.cumsum(), GAPS, np.full(90, 0.1)], axis=1), 12)
    assert_allclose(panel[:, 0], stattools.acf(Y.cumsum(), nlags=12, fft=False))
    assert_allclose(panel[:, 1], stattools.acf(GAPS, nlags=12, missing="conservative", fft=False))
    assert np.isnan(panel[:, 2]).all()
    assert_allclose(pk.arima.pacf(Y.cumsum(), 12), stattools.pacf(Y.cumsum(), 12, method="ldb"))
    with pytest.raises(ValueError, match="lags is 90"):
        correlations.acf(Y, 90)


@pytest.mark.filterwarnings("ignore:adfuller currently returns")
@pytest.mark.parametrize("terms", ["n", "c", "ct"])
def test_dickey_fuller(terms):
    for y in (Y, Y.cumsum()):
        for lags in (None, 3):
            found = unit_roots.adf(y, lags, terms)
            theirs = stattools.adfuller(y, maxlag=lags, regression=terms, autolag=None if lags else "AIC")
            assert_allclose(found.statistic, theirs[0], rtol=1e-8)
            assert (found.lags, found.values) == theirs[2:4]
            far = unit_roots.adf(1e8 * y + (0 if terms == "n" else 1e9), lags, terms)
            assert_allclose(far.statistic, theirs[0], rtol=1e-5)
            assert_allclose(list(found.critical.values()), [theirs[4][name] for name in found.critical])
    assert np.isfinite(unit_roots.adf(Y[:10], terms=terms).statistic)
    with pytest.raises(ValueError, match="terms is 'x'"):
        unit_roots.adf(Y, terms="x")
