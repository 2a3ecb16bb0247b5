"""Every accident to a tensor's bytes is seen; the same bytes give the same number everywhere."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from workers.transfer.checksum import checksum, checksums

CHUNK_BYTES = 8 * 256 * 255

SIZES = st.one_of(st.integers(1, 64), st.integers(CHUNK_BYTES - 9, 3 * CHUNK_BYTES + 9))
SEEDS = st.integers(0, 2**32)


def some_bytes(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


def plain_checksum(data: bytes) -> int:
    """As the module describes it, in Python's own integers."""

    def weight(position: int, stream: int) -> int:  # splitmix64's finalizer
        z = (position + (stream << 40)) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31 | 1

    def signed(value: int, bits: int) -> int:
        value %= 2**bits
        return value - (value >> bits - 1 << bits)

    num_chunks = len(data) // CHUNK_BYTES + 1
    padded = data.ljust(num_chunks * CHUNK_BYTES, b"\0")
    total = len(data)
    for chunk in range(num_chunks):
        part = padded[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
        words = [int.from_bytes(part[i : i + 8], "little") for i in range(0, CHUNK_BYTES, 8)]
        sums = [sum(words[i::width]) for width in (256, 255) for i in range(width)]
        halves = [signed(half, 32) for s in sums for half in (s, s >> 32)]
        row = sum(half * weight(i, 1) for i, half in enumerate(halves))
        total += row * weight(chunk, 2)
    return signed(total, 64)


@pytest.mark.parametrize("size", [0, 1, 8, 1001, CHUNK_BYTES, 2 * CHUNK_BYTES + 13])
def test_it_is_what_is_described_bit_for_bit(size: int) -> None:
    data = some_bytes(size, seed=size)
    assert checksum(data) == plain_checksum(data.numpy().tobytes())


@given(size=SIZES, seed=SEEDS, position=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(size: int, seed: int, position: int, bit: int) -> None:
    data = some_bytes(size, seed)
    before = checksum(data)
    data[position % size] ^= 1 << bit
    assert checksum(data) != before
    data[position % size] ^= 1 << bit
    assert checksum(data) == before


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8]


@given(
    size=st.one_of(st.integers(2, 64), st.integers(60_000, 500_000)),
    dtype=st.sampled_from(DTYPES),
    places=st.tuples(st.integers(0), st.integers(0)),
    values=st.tuples(st.integers(-8, 8), st.integers(-8, 8)),
)
def test_swapped_elements_are_found(
    size: int, dtype: torch.dtype, places: tuple[int, int], values: tuple[int, int]
) -> None:
    """Those that differ in the sign alone too: it is the highest bit of a word."""
    one, other = places[0] % size, places[1] % size
    assume(one != other)
    assume(values[0] != values[1])
    tensor = torch.zeros(size, dtype=dtype)
    tensor[one], tensor[other] = values
    before = checksum(tensor)
    tensor[one], tensor[other] = values[1], values[0]
    assert checksum(tensor) != before


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_two_places_are_alike(dtype: torch.dtype) -> None:
    """A single -1 among ones, at every place of some and at many places of a large tensor."""
    for size, places in ((300, range(300)), (400_000, range(0, 400_000, 997))):
        tensor = torch.ones(size, dtype=dtype)
        found = set()
        for place in places:
            tensor[place] = -1
            found.add(checksum(tensor))
            tensor[place] = 1
        assert len(found) == len(places)


@given(rows=st.integers(2, 300), columns=st.integers(2, 300), seed=SEEDS)
def test_moved_rows_columns_and_axes_are_found(rows: int, columns: int, seed: int) -> None:
    tensor = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    moved = [tensor.roll(1, 0), tensor.roll(1, 1), tensor.flip(0), tensor.flip(1)]
    moved += [tensor.T.contiguous().view(rows, columns)]
    found = {checksum(t) for t in [tensor, *moved]}
    assert len(found) == len({t.numpy().tobytes() for t in [tensor, *moved]})


@given(size=st.integers(0, 40), more=st.integers(1, 40))
def test_zeros_at_the_end_count(size: int, more: int) -> None:
    assert checksum(torch.zeros(size)) != checksum(torch.zeros(size + more))


@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    dtype=st.sampled_from([*DTYPES, torch.bool, torch.int64]),
    seed=SEEDS,
    offset=st.integers(0, 9),
)
def test_only_the_bytes_count(shape: list[int], dtype: torch.dtype, seed: int, offset: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 2, shape, generator=generator).to(dtype)
    expected = checksum(tensor)
    assert checksum(tensor.view(-1).view(torch.uint8)) == expected
    strided = tensor.unsqueeze(-1).expand(*shape, 2).clone()[..., 0]
    assert checksum(strided) == expected
    elsewhere = torch.cat([torch.zeros(offset).to(dtype), tensor.view(-1)])[offset:]
    assert checksum(elsewhere) == expected
    assert checksum(torch.nn.Parameter(tensor, requires_grad=dtype.is_floating_point)) == expected


def test_a_large_tensor_at_an_odd_address_is_as_any_other() -> None:
    data = some_bytes(3 * CHUNK_BYTES, seed=1)
    assert checksum(torch.cat([data[:3], data])[3:]) == checksum(data)


def test_by_name_it_is_the_same_number() -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(70_000), "c": torch.zeros(0)}
    assert checksums(tensors.items()) == {name: checksum(t) for name, t in tensors.items()}
    assert checksums([]) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [1, 1001, 5 * CHUNK_BYTES + 13])
def test_a_gpu_finds_the_same(size: int) -> None:
    data = some_bytes(size, seed=size)
    assert checksum(data.cuda()) == checksum(data)
