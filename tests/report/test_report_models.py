"""What is drawn on the pictures of a report."""

from __future__ import annotations

import numpy as np

from freekd_mm.report.models import draw_boxes, draw_labels


def test_boxes_have_the_colour_of_their_class() -> None:
    drawn = draw_boxes(
        np.zeros((50, 50, 3), np.uint8), np.array([[10.0, 10, 30, 30]]), np.array([1]), [(9, 9, 9), (0, 255, 0)]
    )
    assert (drawn == (0, 255, 0)).all(2).any()
    assert drawn.shape[0] >= 400


def test_pixels_without_a_class_stay_as_they_are() -> None:
    image = np.full((4, 4, 3), 200, np.uint8)
    labels = np.array([[255, 0]] * 4).repeat(2, 1)
    drawn = draw_labels(image, labels, [(0, 0, 0)])
    assert drawn[0, 0].tolist() == [200, 200, 200]
    assert drawn[0, -1].tolist() == [70, 70, 70]
