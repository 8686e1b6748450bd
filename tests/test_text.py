"""Names for people."""

from __future__ import annotations

import pytest

from freekd_mm.text import short_names


@pytest.mark.parametrize(
    ('paths', 'least', 'names'),
    [
        (['a/x.png', 'b/y.png'], 1, ['x', 'y']),
        (['a/x.png', 'b/x.png'], 1, ['a_x', 'b_x']),
        (['r/a/x.png', 's/a/x.png', 's/a/y.png'], 1, ['r_a_x', 's_a_x', 's_a_y']),
        (['seed0/kd/epoch_1.pth', 'seed1/kd/epoch_1.pth'], 2, ['seed0_kd_epoch_1', 'seed1_kd_epoch_1']),
        (['x.png', 'a/x.png'], 1, ['x', 'a_x']),
        (['x.png'], 2, ['x']),
        (['a/x.png', 'a/x.png'], 1, ['x', 'x']),
        (['a/x.png', 'a/x.jpg'], 1, ['x.png', 'x.jpg']),
    ],
)
def test_names_have_as_many_folders_as_tell_them_apart(paths, least, names):
    assert short_names(paths, least) == names
