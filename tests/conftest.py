"""Fixtures of the whole suite."""

import pytest


@pytest.fixture(params=["amaranth", "cxxrtl"])
def backend(request: pytest.FixtureRequest) -> str:
    """Name of a simulator backend: a test that takes it runs on each of them."""
    return request.param
