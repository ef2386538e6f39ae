"""The playground as the command serves it, and a browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from chromium import launched
from visitors import serving


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("play")) as (found, _):
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened
