"""Where a row's score is read: at the token that Hugging Face reads it from."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models.packed_rows import pack_scored

PAD = 0
ROWS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_the_rightmost_token_that_is_no_padding(rows: list[list[int]]) -> None:
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = torch.full((len(rows), int(lengths.max())), PAD)
    for index, row in enumerate(rows):
        token_ids[index, : len(row)] = torch.tensor(row)
    mask = torch.arange(token_ids.shape[1]) < lengths.unsqueeze(1)
    packed = pack_scored(token_ids, mask, pad_token_id=PAD)
    found = packed.position_ids[0, packed.predictors]
    expected = [max((i for i, token in enumerate(row) if token != PAD), default=0) for row in rows]
    assert found.tolist() == expected
    assert packed.token_ids[0].tolist() == [token for row in rows for token in row]
