"""Models trained once for all attack tests."""

from __future__ import annotations

import pytest
from torch import nn

from tests.attacks import tiny


@pytest.fixture(scope="session")
def robust() -> nn.Sequential:
    """A small network trained on PGD images."""
    return tiny.trained(adversarial=True)


@pytest.fixture(scope="session")
def plain() -> nn.Sequential:
    """The same network trained on clean images."""
    return tiny.trained(adversarial=False)
