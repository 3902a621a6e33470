"""Grids as tokens and back: the published layout, what is read off malformed tokens, turns and places."""

import numpy as np

from loopgrad.experiments.tasks.arc_grids import corner_of, decode, encode, swaps_sides, turned, unturned


def test_tokens_are_laid_out_as_published():
    grid = np.array([[0, 9], [3, 4], [5, 6]])
    assert encode(grid, 4).reshape(4, 4).tolist() == [[2, 11, 1, 0], [5, 6, 1, 0], [7, 8, 1, 0], [1, 1, 0, 0]]
    assert encode(np.full((2, 2), 7), 2).tolist() == [9, 9, 9, 9]


def test_decoding_inverts_encoding_whatever_stands_in_the_padding():
    rng = np.random.default_rng(0)
    for _ in range(200):
        grid = rng.integers(0, 10, rng.integers(1, 7, 2))
        tokens = encode(grid, 6)
        assert np.array_equal(decode(tokens, 6), grid)
        noise = np.where(tokens == 0, rng.integers(0, 12, 36), tokens)
        assert np.array_equal(decode(noise, 6), grid)
    assert decode(np.ones(36, dtype=int), 6).size == 0


def test_what_is_read_off_malformed_tokens_is_the_largest_coloured_rectangle():
    """Against trying every rectangle; of those of one area the one with fewest rows."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        tokens = np.where(rng.random((6, 6)) < 0.15, rng.choice([0, 1, 12, -100], (6, 6)), rng.integers(2, 12, (6, 6)))
        for corner in ((0, 0), (2, 1)):
            inside = tokens[corner[0] :, corner[1] :]
            sizes = [(r, c) for r in range(1, 7 - corner[0]) for c in range(1, 7 - corner[1])]
            whole = [(r, c) for r, c in sizes if ((inside[:r, :c] >= 2) & (inside[:r, :c] <= 11)).all()]
            grid = decode(tokens.reshape(-1), 6, corner)
            if whole:
                rows, columns = max(whole, key=lambda size: (size[0] * size[1], -size[0]))
                assert np.array_equal(grid, inside[:rows, :columns] - 2)
            else:
                assert grid.shape == (0, 0)


def test_every_turn_is_undone():
    grid = np.arange(6).reshape(2, 3)
    images = [turned(grid, turn) for turn in range(8)]
    assert len({(image.shape, image.tobytes()) for image in images}) == 8
    for turn, image in enumerate(images):
        assert np.array_equal(unturned(image, turn), grid)
        assert bool(swaps_sides(np.array(turn))) == (image.shape == (3, 2))


def test_a_shifted_grid_has_its_marks_beside_it():
    grid = np.array([[0, 9], [3, 4]])
    rows = [[0, 0, 0, 0, 0], [0, 2, 11, 1, 0], [0, 5, 6, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert encode(grid, 5, (1, 1)).reshape(5, 5).tolist() == rows
    assert corner_of(encode(grid, 5, (1, 1)), 5) == (1, 1)
    # at the border no mark has a place
    at_border = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 11], [0, 0, 5, 6]]
    assert encode(grid, 4, (2, 2)).reshape(4, 4).tolist() == at_border
    assert np.array_equal(decode(encode(grid, 4, (2, 2)), 4, (2, 2)), grid)
    assert corner_of(np.zeros(16), 4) == (0, 0)
