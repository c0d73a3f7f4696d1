"""What the tests of calls have in common."""

import pytest
from torch import Tensor


@pytest.fixture
def tokens(random_tokens) -> tuple[Tensor, Tensor]:
    """To calibrate and to evaluate on."""
    return random_tokens(6, 32, 0), random_tokens(6, 32, 1)
