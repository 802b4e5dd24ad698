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


class Room(NamedTuple):
    """What a row has room for."""

    slots: int  # tokens, of prompts and completions
    places: int  # tokens of completions
    sharing: int  # completions


def pack(
    prompts: Int[np.ndarray, "B Tp"],
    valid: Bool[np.ndarray, "B Tp"],
    completions: Int[np.ndarray, "B T"],
    written: Bool[np.ndarray, "B T"],
    rows: int,
) -> Iterator[tuple[Layout, Int[np.ndarray, " N"]]]:
    """Micro-batches of `rows` rows of L = Tp + T slots and C = T places, all of one shape.

    With each, which completions it holds: N = rows · M numbers, -1 where there is none. Rows of the
    batch with the same prompt share it where they lie side by side, as a group's do.
    """
    heads, owners = _distinct_prompts(prompts, valid)
    lengths = written.sum(axis=1)
    T = written.shape[1]
    room = Room(slots=prompts.shape[1] + T, places=T, sharing=SHARING)
    head_lengths = np.array([len(head) for head in heads], int)
    assigned = _first_fit(lengths, owners, head_lengths, room)
    for first in range(0, len(assigned), rows):
        layout = _empty_layout(rows, room)
        index = np.full((rows, room.sharing), -1)
        for row, members in enumerate(assigned[first : first + rows]):
            index[row, : len(members)] = members
            texts = [completions[i, : lengths[i]] for i in members]
            _fill(Layout(*(array[row] for array in layout)), heads, owners[members], texts)
        yield layout, index.reshape(-1)


def _distinct_prompts(prompts, valid) -> tuple[list[np.ndarray], Int[np.ndarray, " B"]]:
    """The prompts without their padding, equal neighbours once, and which of them each row has."""
    unpadded = np.where(valid, prompts, -1)
    differs = np.ones(len(prompts), bool)  # from the row before; the first row always does
    differs[1:] = (unpadded[1:] != unpadded[:-1]).any(axis=1)
    owners = np.cumsum(differs) - 1
    heads = [row[row >= 0] for row in unpadded[differs]]
    return heads, owners


def _empty_layout(rows: int, room: Room) -> Layout:
    def zeros(columns):
        return np.zeros((rows, columns), np.int32)

    return Layout(
        tokens=zeros(room.slots),
        positions=zeros(room.slots),
        segments=zeros(room.slots),
        prefixes=zeros(room.slots),
        before=zeros(room.places),
        targets=zeros(room.places),
        starts=zeros(room.sharing),
    )


def _first_fit(lengths, owners, head_lengths, room: Room) -> list[list[int]]:
    """Which completions share a row: lists of their numbers, a list a row.

    A prompt's longest completion comes first. Each goes into the first row where its prompt is
    already and that has room, else into the first row with room for both.
    """
    count = len(lengths)  # of rows too, at most
    free_slots = np.full(count, room.slots)
    free_places = np.full(count, room.places)
    free_numbers = np.full(count, room.sharing)
    has_prompt = np.zeros((count, len(head_lengths)), bool)
    assigned = [[] for _ in range(count)]
    for i in np.lexsort((-lengths, owners)):
        prompt_there = has_prompt[:, owners[i]]
        need = lengths[i] + np.where(prompt_there, 0, head_lengths[owners[i]])
        fits = (need <= free_slots) & (lengths[i] <= free_places) & (free_numbers > 0)
        row = int(np.argmax(fits * (1 + prompt_there)))  # 2 beats 1, and the first of equals wins
        free_slots[row] -= need[row]
        free_places[row] -= lengths[i]
        free_numbers[row] -= 1
        has_prompt[row, owners[i]] = True
        assigned[row].append(int(i))
    return [sorted(members) for members in assigned if members]


def _fill(row: Layout, heads, owners, texts) -> None:
    """Write prompts and completions into the arrays of one row, [L], [C] and [M]."""
    slot = 0
    place = 0
    segment = 0
    owner = None
    for number, (other, text) in enumerate(zip(owners, texts, strict=True)):
        head = heads[other]
        if other != owner:
            owner = other
            segment += 1
            prompt = segment
            here = _write(row, slot, head, first_position=0)
            row.segments[here] = prompt
            row.prefixes[here] = prompt
            slot += len(head)
            last_of_prompt = slot - 1
        segment += 1
        here = _write(row, slot, text, first_position=len(head))
        row.segments[here] = segment
        row.prefixes[here] = prompt
        # The prompt's last token predicts the first of the completion, each of these the next.
        places = slice(place, place + len(text))
        row.before[places] = np.r_[last_of_prompt, slot + np.arange(len(text) - 1)]
        row.targets[places] = text
        row.starts[number] = place
        slot += len(text)
        place += len(text)


def _write(row: Layout, slot: int, ids, *, first_position: int) -> slice:
    """Write token ids into a row from a slot on, and their positions; gives their slots."""
    here = slice(slot, slot + len(ids))
    row.tokens[here] = ids
    row.positions[here] = first_position + np.arange(len(ids))
    return here
