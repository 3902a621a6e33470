"""Paths in small mazes, enumerated one by one."""


def simple_paths(free, start):
    """Every path without a repeated cell from start, as lists of cells."""
    paths, unfinished = [], [[start]]
    while unfinished:
        path = unfinished.pop()
        paths.append(path)
        row, column = path[-1]
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= cell[0] < len(free) and 0 <= cell[1] < len(free[0])
            if inside and free[cell] and cell not in path:
                unfinished.append([*path, cell])
    return paths
