"""Packed rows, read back slot by slot."""

import numpy as np
import pytest

from aha_lib.rl import packing


def drawn(rng, prompts, group, long, longest, most):
    """A batch of groups: prompts of several lengths, padded on the left, tokens all different."""
    lengths = rng.integers(1, longest + 1, prompts * group)
    valid = np.arange(long) >= long - rng.integers(1, long + 1, prompts)[:, None]
    heads = np.where(valid, 10_000 + np.arange(prompts * long).reshape(prompts, long), 0)
    mask = np.arange(most) < lengths[:, None]
    texts = np.where(mask, 1 + np.arange(mask.size).reshape(mask.shape), 0)
    return np.repeat(heads, group, 0), np.repeat(valid, group, 0), texts, mask


@pytest.mark.parametrize(("longest", "rows"), [(3, 4), (12, 4), (40, 1), (40, 64)])
def test_every_completion_once_behind_its_prompt(longest, rows):
    prompts, valid, texts, mask = drawn(np.random.default_rng(longest), 6, 8, 7, longest, 40)
    seen = []
    for layout, index in packing.pack(prompts, valid, texts, mask, rows):
        shapes = [x.shape for x in layout]
        assert shapes == [(rows, 47)] * 4 + [(rows, 40)] * 2 + [(rows, packing.SHARING)]
        index = index.reshape(rows, packing.SHARING)
        for row, held in zip(zip(*layout, strict=True), index, strict=True):
            tokens, positions, segments, prefixes, before, targets, starts = row
            heads = []
            for number, i in enumerate(held[held >= 0]):
                seen.append(i)
                text, head = texts[i][mask[i]], prompts[i][valid[i]]
                places = starts[number] + np.arange(len(text))
                assert (targets[places] == text).all()
                slot = np.flatnonzero(tokens == text[0])
                assert len(slot) == 1
                here = slot[0] + np.arange(len(text))
                assert (tokens[here] == text).all() and len({*segments[here]}) == 1
                assert (positions[here] == len(head) + np.arange(len(text))).all()
                (prefix,) = {*prefixes[here]}
                prompt = np.flatnonzero(segments == prefix)
                assert (tokens[prompt] == head).all() and prompt[-1] < here[0]
                assert (positions[prompt] == np.arange(len(head))).all()
                assert (before[places] == [prompt[-1], *here[:-1]]).all()
                heads.append(prefix)
            used = sum(mask[i].sum() for i in held[held >= 0])
            used += sum((segments == prefix).sum() for prefix in {*heads})
            assert (segments > 0).sum() == used, "nothing else is in the row, no prompt twice"
    assert sorted(seen) == [*range(len(mask))]


def test_a_group_of_short_answers_shares_rows():
    """48 answers of at most 3 tokens: as many rows as SHARING asks for, and no more."""
    batch = drawn(np.random.default_rng(0), 3, 16, 7, 3, 40)
    layout, index = next(packing.pack(*batch, rows=8))
    assert (layout.segments > 0).any(1).sum() == 3 and (index >= 0).sum() == 48


def test_the_longest_have_a_row_each():
    prompts, valid = np.ones((2, 5), int), np.ones((2, 5), bool)
    texts = np.full((2, 9), 3)
    layout, index = next(packing.pack(prompts, valid, texts, texts > 0, rows=2))
    assert (layout.segments > 0).all() and [*index[index >= 0]] == [0, 1]


def test_nothing_to_pack():
    none = np.zeros((0, 4), int)
    assert not [*packing.pack(none, none > 0, none, none > 0, rows=2)]
