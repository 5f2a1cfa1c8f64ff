"""Dividing rows into consecutive parts of nearly equal length. Pure."""

import numpy as np


def part_of(total: int, number: int, count: int) -> range:
    """The rows of part `number` when `total` rows are divided into `count` parts; lengths differ by at most one."""
    return range(total * number // count, total * (number + 1) // count)


def divide(rows: np.ndarray, at_most: int) -> list[np.ndarray]:
    """Divide rows [N] into as few parts as possible of at most `at_most` rows each; no parts when N is 0."""
    count = -(-len(rows) // at_most)
    parts = (part_of(len(rows), number, count) for number in range(count))
    return [rows[indices.start : indices.stop] for indices in parts]
