"""Bins: round trips, the reference's quantile rule, and what lies at and beyond the edges."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigdm_ray.envs.signature import Leaf
from bigdm_ray.tokens.bins import Bins, Elements, quantiles

KINDS = pytest.mark.parametrize("kind", ["quantile", "uniform"])


def fitted(data, kind="quantile", count=10, **more):
    bins = Bins([0] * data.shape[1], count)
    bins.fit(lambda: data.split(7), len(data), kind, **more)
    return bins


@KINDS
@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2), min_size=1, max_size=60),
    st.integers(1, 12),
)
def test_what_is_decoded_lies_in_the_bin_that_it_was_encoded_as(kind, rows, count):
    data = torch.tensor(rows)
    bins = fitted(data, kind, count)
    tokens = bins.encode(data)
    assert tokens.min() >= 0 and tokens.max() < count
    again = bins.decode(tokens)
    low, high = bins.edges.gather(1, tokens.T).T, bins.edges.gather(1, tokens.T + 1).T
    assert ((low <= again) & (again <= high)).all()
    assert ((data - again).abs() <= (high - low) * (1 + 1e-5) + 1e-3).all()
    assert ((low <= data) & (data <= high)).all()
    order = data[:, 0].argsort()
    assert (tokens[order, 0].diff() >= 0).all(), "encoding keeps the order"


@KINDS
def test_the_middle_of_a_bin_is_encoded_as_that_bin(kind):
    data = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    bins = fitted(data, kind, 20)
    tokens = torch.arange(20)[:, None].expand(20, 3)
    torch.testing.assert_close(bins.encode(bins.decode(tokens)), tokens)


def test_quantile_edges_are_those_of_the_reference_rule():
    values = np.random.default_rng(0).normal(size=537).astype(np.float32)
    bins = fitted(torch.from_numpy(values)[:, None], count=100)
    ordered = np.sort(values)
    want = [ordered[i] for i in range(0, 537, 6)] + [ordered[-1]]  # ceil(537 / 100) = 6
    np.testing.assert_array_equal(bins.edges[0, : len(want)].numpy(), want)
    assert (bins.edges[0, len(want) :] == ordered[-1]).all()
    thresholds = np.array(want)
    for x in values[:50]:
        last = max(i for i, edge in enumerate(thresholds) if edge <= x)
        assert int(bins.encode(torch.tensor([[x]]))) == last


def test_the_columns_of_a_leaf_are_its_elements_in_a_row():
    leaves = {
        "a": Leaf("tensor", (3,), "float32"),
        "eye": Leaf("image", (2, 8, 8), "uint8"),
        "say": Leaf("text", (40,), "uint8"),
        "where": Leaf("tensor", (2,), "float32"),
    }
    values = {
        path: torch.full((5, *leaf.shape), float(i))
        for i, (path, leaf) in enumerate(leaves.items())
    }
    seen = Elements(leaves, cells=2, letters=4)
    rows = seen.rows(values)
    for i, path in enumerate(leaves):
        columns = seen.columns(path)
        assert (rows[:, columns] == i).all() and (rows == i).sum() == 5 * (
            columns.stop - columns.start
        )
    assert seen.columns("goal") is None
    cut = Elements(leaves, cells=2, letters=4, first=16)
    assert cut.columns("where") is None, "one of its two elements is not seen"
    assert cut.columns("say") == seen.columns("say") == slice(11, 15)


def test_quantile_bins_hold_equally_many():
    data = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(fitted(data, count=20).encode(data)[:, 0], minlength=20)
    assert counts.min() >= 99 and counts.max() <= 101


def test_uniform_bins_are_equally_wide():
    data = torch.tensor([[-3.0], [0.5], [7.0]])
    edges = fitted(data, "uniform", 5).edges[0]
    torch.testing.assert_close(edges, torch.tensor([-3.0, -1, 1, 3, 5, 7]))


@KINDS
def test_values_beyond_the_data_have_the_outermost_bins(kind):
    data = torch.linspace(0, 1, 101)[:, None]
    bins = fitted(data, kind)
    tokens = bins.encode(torch.tensor([[-5.0], [-1e30], [5.0], [float("inf")], [float("-inf")]]))
    assert tokens.flatten().tolist() == [0, 0, 9, 9, 0]
    assert (
        bins.decode(torch.tensor([[10], [-1]])).flatten()
        == bins.decode(torch.tensor([[9], [0]])).flatten()
    ).all()


@KINDS
def test_a_constant_dimension_is_one_bin_that_decodes_to_it(kind):
    data = torch.cat([torch.full((50, 1), 2.5), torch.randn(50, 1)], 1)
    bins = fitted(data, kind)
    tokens = bins.encode(data)
    assert len(tokens[:, 0].unique()) == 1
    assert (bins.decode(tokens)[:, 0] == 2.5).all()


@pytest.mark.parametrize("spike", [-1.0, 0.0, 1.0])
def test_a_value_that_much_of_the_data_shares_has_a_bin_of_its_own(spike):
    """Duplicate quantiles: rewards that are nearly always 0, actions at their bounds."""
    other = torch.linspace(-1, 1, 41)[:, None]
    data = torch.cat([torch.full((200, 1), spike), other])
    bins = fitted(data)
    own = bins.encode(torch.tensor([[spike]]))
    assert float(bins.decode(own)) == spike
    rest = other[other[:, 0] != spike]
    assert not (bins.encode(rest) == own).any()


def test_one_reward_in_a_thousand_is_told_from_none():
    data = torch.zeros(1000, 1)
    data[17] = 1.0
    bins = fitted(data, count=100)
    none, some = bins.encode(torch.tensor([[0.0], [1.0]])).flatten().tolist()
    assert none != some and float(bins.decode(torch.tensor([[none]]))) == 0.0


def test_choices_are_their_own_bins():
    bins = Bins([3, 0, 5], 8)
    data = torch.tensor([[2.0, 10.0, 4.0], [0.0, 20.0, 1.0]])
    bins.fit(lambda: [data], 2)
    assert bins.encode(data)[:, [0, 2]].tolist() == [[2, 4], [0, 1]]
    assert bins.decode(bins.encode(data))[:, [0, 2]].tolist() == [[2.0, 4.0], [0.0, 1.0]]


def test_columns_that_do_not_fit_pass_apart_and_give_the_same():
    data = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    calls = []

    def passes():
        calls.append(1)
        return data.split(64)

    apart = Bins([0] * 5, 10)
    apart.fit(passes, 300, limit=4 * 300 * 2)
    assert len(calls) == 3
    torch.testing.assert_close(apart.edges, fitted(data).edges)


def test_a_column_that_does_not_fit_is_sampled_evenly():
    data = torch.arange(1000.0)[:, None]
    bins = Bins([0], 10)
    bins.fit(lambda: data.split(77), 1000, limit=4 * 100)
    torch.testing.assert_close(bins.edges, quantiles(data[::10].T, 10))


def test_no_data_is_said():
    with pytest.raises(ValueError, match="no data"):
        Bins([0]).fit(lambda: [], 0)


def test_every_kind_of_leaf_becomes_numbers_and_actions_come_back():
    leaves = {
        "arm": Leaf("tensor", (2,), "float32", (-1.0, -1.0), (1.0, 1.0)),
        "eye": Leaf("image", (3, 4, 4), "uint8"),
        "grip": Leaf("discrete", (2,), "int32", choices=(2, 3)),
        "word": Leaf("text", (8,), "uint8"),
    }
    elements = Elements(leaves, cells=2, letters=3)
    assert elements.width == 2 + 12 + 2 + 3 and elements.choices == [0] * 14 + [2, 3] + [0] * 3
    eye = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    eye[:, 1, :2, 2:] = 8
    rows = elements.rows(
        {
            "arm": torch.ones(5, 2),
            "eye": eye,
            "grip": torch.ones(5, 2).int(),
            "word": torch.full((5, 8), 65, dtype=torch.uint8),
        }
    )
    assert rows[0].tolist() == [1, 1] + [0] * 4 + [0, 8, 0, 0] + [0] * 4 + [1, 1] + [65] * 3
    actions = Elements({path: leaves[path] for path in ("arm", "grip")})
    given = {"arm": torch.tensor([[0.5, -3.0]]), "grip": torch.tensor([[1, 2]], dtype=torch.int32)}
    back = actions.values(actions.rows(given))
    assert (
        back["arm"].tolist() == [[0.5, -1.0]]
        and back["grip"].tolist() == [[1, 2]]
        and back["grip"].dtype == torch.int32
    )
    assert (
        Elements(leaves, first=4).width
        == 4
        == Elements(leaves, first=4)
        .rows(given | {"eye": eye[:1], "word": torch.zeros(1, 8)})
        .shape[-1]
    )
