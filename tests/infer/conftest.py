"""What the tests of inference share: the Nile, and its posterior under the local level by quadrature."""

import pytest
from quadrature import local_level_posterior

import probkit as pk


@pytest.fixture(scope="session")
def nile():
    return pk.datasets.nile()


@pytest.fixture(scope="session")
def grid(nile):
    return local_level_posterior(nile.to_numpy(float))
