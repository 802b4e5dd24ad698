"""Prompts and their completions side by side in rows, so that the update pays for no padding.

A row holds prompts, each once, and behind it some of its completions: they see the prompt and not
each other. Knows nothing of models, rewards or losses; takes token ids on the host.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

SHARING = 16  # completions in a row at most


class Layout(NamedTuple):
    """R rows of L slots, with places for C completion tokens in M completions each."""

    tokens: Int[Array, "R L"]
    positions: Int[Array, "R L"]  # of a completion's tokens, its prompt's counted
    segments: Int[Array, "R L"]  # prompts and completions, from 1; 0 is padding
    prefixes: Int[Array, "R L"]  # the segment of a token's prompt
    before: Int[Array, "R C"]  # slots whose states predict completions
    targets: Int[Array, "R C"]  # those tokens
    starts: Int[Array, "R M"]  # where among them a completion begins


def pack(
    prompts: Int[np.ndarray, "B Tp"],
    valid: Bool[np.ndarray, "B Tp"],
    completions: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    rows: int,
) -> Iterator[tuple[Layout, Int[np.ndarray, " N"]]]:
    """Micro-batches of `rows` rows of L = Tp + T slots and C = T places, all of one shape.

    With each, which completions it holds: N = rows · M numbers, -1 where there is none. Rows of the
    batch with the same prompt share it where they lie side by side, as a group's do.
    """
    given = np.where(valid, prompts, -1)
    new = np.r_[True, (given[1:] != given[:-1]).any(axis=1)][: len(given)]
    owners, lengths = np.cumsum(new) - 1, mask.sum(axis=1)
    heads, places = [row[row >= 0] for row in given[new]], mask.shape[1]
    slots = prompts.shape[1] + places
    together = _first_fit(lengths, owners, np.array([*map(len, heads)], int), slots, places)
    for first in range(0, len(together), rows):
        layout = Layout(
            *(np.zeros((rows, n), np.int32) for n in [slots] * 4 + [places] * 2 + [SHARING])
        )
        index = np.full((rows, SHARING), -1)
        for row, members in enumerate(together[first : first + rows]):
            index[row, : len(members)] = members
            texts = [completions[i, : lengths[i]] for i in members]
            _fill(Layout(*(x[row] for x in layout)), heads, owners[members], texts)
        yield layout, index.reshape(-1)


def _first_fit(lengths, owners, heads, slots: int, places: int) -> list[list[int]]:
    """Completions that share a row: a prompt's longest first, each where its prompt is already,
    else in the first row with room for both."""
    count = len(lengths)
    free, left, held = np.full(count, slots), np.full(count, places), np.full(count, SHARING)
    has = np.zeros((count, len(heads)), bool)
    together = [[] for _ in range(count)]
    for i in np.lexsort((-lengths, owners)):
        there = has[:, owners[i]]
        need = lengths[i] + np.where(there, 0, heads[owners[i]])
        row = int(np.argmax(((need <= free) & (lengths[i] <= left) & (held > 0)) * (1 + there)))
        free[row] -= need[row]
        left[row] -= lengths[i]
        held[row] -= 1
        has[row, owners[i]] = True
        together[row].append(int(i))
    return [sorted(members) for members in together if members]


def _fill(row, heads, owners, texts) -> None:
    """Write prompts and completions into the arrays of one row, [L], [C] and [M]."""
    slot = place = segment = 0
    owner = None

    def put(ids, position, prefix):
        nonlocal slot, segment
        here, segment = slice(slot, slot + len(ids)), segment + 1
        row.tokens[here], row.segments[here], row.prefixes[here] = ids, segment, prefix or segment
        row.positions[here] = position + np.arange(len(ids))
        slot = here.stop

    for number, (other, text) in enumerate(zip(owners, texts, strict=True)):
        if other != owner:
            owner, head = other, heads[other]
            put(head, 0, 0)
            prompt, last = segment, slot - 1
        here = slice(place, place + len(text))
        row.before[here] = np.r_[last, slot + np.arange(len(text) - 1)]
        row.targets[here], row.starts[number] = text, place
        put(text, len(head), prompt)
        place = here.stop
