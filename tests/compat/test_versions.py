"""What stands in for a newer Python."""

from __future__ import annotations

import pytest

from freekd_mm.compat.versions import zip_equal


def test_zip_equal_refuses_other_lengths() -> None:
    assert list(zip_equal([1, None], 'ab')) == [(1, 'a'), (None, 'b')]
    for short, long in (([1], 'ab'), ('ab', [1]), ([], [None])):
        with pytest.raises(ValueError, match='of one length, but one of 2 is shorter'):
            list(zip_equal(short, long))
