"""The symmetries of a square, beside those written out by hand."""

import numpy as np

from loopgrad.experiments.tasks.maze_grids import dihedral_images, image_keys


def test_the_eight_images_are_those_of_a_square():
    images = dihedral_images(np.arange(9).reshape(1, 3, 3))[:, 0]
    square = np.arange(9).reshape(3, 3)
    expected = [square, square[::-1], square[:, ::-1], square[::-1, ::-1]]
    expected += [image.T for image in expected]
    assert {image.tobytes() for image in images} == {np.ascontiguousarray(image).tobytes() for image in expected}


def test_a_key_is_that_of_all_images_and_of_no_other_grid():
    grids = np.random.default_rng(0).integers(0, 2, (12, 3, 3)).astype(np.uint8)
    images = dihedral_images(grids)
    keys = image_keys(grids)
    assert all(image_keys(images[:, i]) == [keys[i]] * 8 for i in range(12))
    for i in range(12):
        for j in range(12):
            alike = any(np.array_equal(grids[i], image) for image in images[:, j])
            assert (keys[i] == keys[j]) == alike
