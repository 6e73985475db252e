"""Where there can be no jail, the tests of it say why and are skipped; those of the refusal run everywhere."""

from __future__ import annotations

import pytest
from redistill.errors import UserError
from redistill.sandbox import refuse_without_jail


@pytest.fixture(scope="session")
def jailed() -> None:
    """A test with this fixture needs a jail."""
    try:
        refuse_without_jail()
    except UserError as error:
        pytest.skip(str(error))
