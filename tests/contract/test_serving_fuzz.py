"""A thousand broken calls: none ends in a status above 499, and the server answers as before afterwards."""

from __future__ import annotations

import pytest

from tests.faults import server_calls

CALLS = 1000


@pytest.mark.timeout(900)
def test_no_input_makes_the_server_fail() -> None:
    outcome = server_calls.run(CALLS, seed=0)
    assert outcome.examples == []
    assert outcome.tries == CALLS
    codes = dict(pair.split(": ") for pair in outcome.notes[0].removeprefix("answers by status: ").split(", "))
    assert {"400", "404", "405", "422"} <= set(codes)
    assert int(codes["200"]) > CALLS / 50
