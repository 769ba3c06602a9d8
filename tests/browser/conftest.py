"""A browser for the tests that use the page as a person does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.person import Person, a_person


@pytest.fixture(scope="session")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with a_person(tmp_path_factory.mktemp("browser")) as somebody:
        yield somebody
