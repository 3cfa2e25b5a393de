"""Beam search against a plain rebuilding of the same rules: a full forward pass for every token,
and no cache."""

import numpy as np
import pytest
import torch

from bigdm_ray.models.trajectory import TrajectoryTransformer
from bigdm_ray.planning import beam
from bigdm_ray.planning.beam import Planner
from bigdm_ray.planning.encoder import WindowEncoder
from bigdm_ray.planning.sampling import SearchSettings, filter_logits, sample_tokens
from bigdm_ray.tokens.bins import Bins

SEEN, ACTED, BINS = 3, 2, 9
DIMS = SEEN + ACTED + 2


def network(seed=0, choices=(0, 0, 0, 0, 3, 0, 0), window=6, std=0.35, positions="learned", goal=0):
    torch.manual_seed(seed)
    net = TrajectoryTransformer(
        list(choices), BINS, window, 16, 2, 2, goal=goal, positions=positions
    ).eval()
    for name, p in net.named_parameters():
        torch.nn.init.normal_(p, std=std) if p.ndim > 1 else torch.nn.init.normal_(
            p, 1.0 if "norm" in name and "weight" in name else 0.0, 0.1
        )
    return net.requires_grad_(False)


def planner(net, **more):
    fixed = {"horizon": 4, "beams": 6, "expansions": 2, "context": 3, "k_act": 4}
    bins = Bins([0] * DIMS, BINS)
    bins.edges *= torch.arange(1, DIMS + 1)[:, None]
    return Planner(net, bins, SEEN, ACTED, SearchSettings(**(fixed | more)))


def given(n=1, m=3, seed=0):
    chance = torch.Generator().manual_seed(seed)
    past = torch.randint(0, BINS, (n, m, DIMS), generator=chance)
    past[:, :, 4] %= 3
    return past, torch.randint(0, BINS, (n, SEEN), generator=chance)


# --- the rules, plainly: sequences are lists of tokens, each probability is a full forward pass


def cropped(sequence, context):
    """At most `context` transitions less one token, by whole transitions from the left."""
    while len(sequence) > context * DIMS - 1:
        sequence = sequence[DIMS:]
    return sequence


def logits_after(net, sequence, context):
    sequence = cropped(sequence, context)
    k = len(sequence) // DIMS + 1
    tokens = torch.zeros(1, k * DIMS, dtype=torch.int64)
    tokens[0, : len(sequence)] = torch.tensor(sequence)
    return net(tokens.view(1, k, DIMS)).view(DIMS, k, BINS + 1)[
        len(sequence) % DIMS, len(sequence) // DIMS
    ]


def filtered(logits, k, cdf):
    keep = torch.ones(len(logits), dtype=torch.bool)
    probability = logits.softmax(0)
    if cdf:
        gone, total = [], 0.0
        for i in probability.argsort().tolist():
            total += float(probability[i])
            if total >= cdf:
                break
            gone.append(i)
        if gone:
            keep &= probability > max(float(probability[i]) for i in gone)
    logits = torch.where(keep, logits, -torch.inf)
    if k:
        best = logits.argsort(descending=True)[:k]
        mask = torch.zeros(len(logits), dtype=torch.bool)
        mask[best] = True
        logits = torch.where(mask, logits, -torch.inf)
    return logits


def picked(logits, k, u):
    if k == 1:
        return int(logits.argmax())
    total = 0.0
    for i, p in enumerate(logits.softmax(0).tolist()):
        total += p
        if total > u:
            return i
    raise AssertionError


def plain_plan(p, past, state, numbers):
    net, s = p.net, p.search
    beams = [([*past.flatten().tolist(), *state.tolist()], []) for _ in range(s.beams)]
    for t in range(s.horizon):
        scored = []
        for c in range(s.beams * s.expansions):
            sequence, earned = beams[c % s.beams]
            sequence, numbers_of = list(sequence), []
            for j in range(ACTED + 2):
                logits = logits_after(net, sequence, s.context)
                if j < ACTED:
                    if t == 0:
                        logits[BINS] = -torch.inf
                    token = picked(
                        filtered(logits, s.k_act, s.cdf_act),
                        s.k_act,
                        float(numbers["actions"][t, j, c]),
                    )
                else:
                    u = float(numbers["outcomes"][t, j - ACTED, c]) if s.k_rew != 1 else 0.0
                    token = picked(filtered(logits, s.k_rew, 0.0), s.k_rew, u)
                    middles = p.middles[SEEN + j].tolist()
                    probability = logits.softmax(0).tolist()
                    # without the stop token
                    expected = sum(q * x for q, x in zip(probability, middles, strict=False))
                    numbers_of.append(expected if s.expected else (*middles, 0.0)[token])
                sequence.append(token)
            rewards = [*earned, numbers_of[0]]
            score = (
                sum(s.discount**i * r for i, r in enumerate(rewards))
                + s.discount ** (t + 1) * numbers_of[1]
            )
            scored.append((score, c, sequence, rewards))
        scored.sort(key=lambda row: (-row[0], row[1]))
        beams = [(sequence, rewards) for _, _, sequence, rewards in scored[: s.beams]]
        if t < s.horizon - 1:
            for b, (sequence, _) in enumerate(beams):
                for d in range(SEEN):
                    u = float(numbers["states"][t, d, b]) if s.k_obs != 1 else 0.0
                    sequence.append(
                        picked(
                            filtered(logits_after(net, sequence, s.context), s.k_obs, s.cdf_obs),
                            s.k_obs,
                            u,
                        )
                    )
    return torch.tensor(beams[0][0])[past.numel() :].view(s.horizon, DIMS), scored[0][0]


def plain_likely(p, past, state):
    net, s = p.net, p.search
    beams = [(0.0, [*past.flatten().tolist(), *state.tolist()])]
    for place in range(SEEN, s.horizon * DIMS):
        d, t = place % DIMS, place // DIMS
        k, cdf = (
            (s.k_obs, s.cdf_obs)
            if d < SEEN
            else (s.k_act, s.cdf_act)
            if d < SEEN + ACTED
            else (s.k_rew, 0.0)
        )
        found = []
        for total, sequence in beams:
            logits = logits_after(net, sequence, s.context)
            if t == 0 and SEEN <= d < SEEN + ACTED:
                logits[BINS] = -torch.inf
            for token, logp in enumerate(filtered(logits, k, cdf).log_softmax(0).tolist()):
                if logp > -np.inf:
                    found.append((total + logp, [*sequence, token]))
        beams = sorted(found, key=lambda row: -row[0])[: s.beams]
    return torch.tensor(beams[0][1])[past.numel() :].view(s.horizon, DIMS), beams[0][0]


PLANS = [
    {},
    {"cdf_act": 0.6, "k_act": 0},
    {"cdf_act": 0.3, "k_act": 3, "expansions": 3},
    {"k_obs": 0, "horizon": 3},
    {"k_obs": 3, "cdf_obs": 0.2, "k_rew": 0, "expected": False},
    {"expected": False, "discount": 0.5},
    {"beams": 1, "expansions": 8, "horizon": 5},
    {"context": 2, "k_act": 1},
    {"context": 6, "horizon": 6, "beams": 3},
]


LENGTHS = [*(pytest.param(m, marks=pytest.mark.slow) for m in (0, 1)), 5]
"""Transitions before the plan; in the fast part more than the context."""
LIKELY = [
    {"horizon": 2},
    {"k_act": 0, "k_obs": 0, "k_rew": 0, "horizon": 2, "beams": 4},
    {"beams": 1},
    {"k_obs": 2, "beams": 20},
    {"k_obs": 2, "beams": 12, "horizon": 3},
]


@torch.no_grad()
@pytest.mark.parametrize("m", LENGTHS)
@pytest.mark.parametrize("kind", PLANS, ids=str)
def test_a_plan_is_that_of_the_plain_algorithm(kind, m):
    p = planner(network(m), **kind)
    past, state = given(1, m, seed=m)
    numbers = p.numbers(np.random.default_rng(m).random((1, 2), np.float32))
    plan = p.plan(past, state, numbers)
    tokens, score = plain_plan(
        p, past[0], state[0], {name: values[0] for name, values in numbers.items()}
    )
    assert plan.tokens[0].tolist() == tokens.tolist()
    assert float(plan.score[0]) == pytest.approx(score, rel=1e-4, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("m", LENGTHS)
@pytest.mark.parametrize("kind", LIKELY, ids=str)
def test_the_most_likely_continuation_is_that_of_the_plain_algorithm(kind, m):
    p = planner(network(m + 10), **kind)
    past, state = given(1, m, seed=m)
    found = p.most_likely_plan(past, state)
    tokens, score = plain_likely(p, past[0], state[0])
    assert found.tokens[0].tolist() == tokens.tolist()
    assert float(found.score[0]) == pytest.approx(score, rel=1e-4, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("m", LENGTHS)
@pytest.mark.parametrize("kind", PLANS, ids=str)
def test_a_plan_that_keeps_what_it_computed_is_that_of_the_plain_algorithm_without_a_crop(kind, m):
    """With rotary positions: what the plan begins behind is cut to the context, then nothing leaves
    the view."""
    net = network(m + 20, positions="rotary", window=12)
    p, all_in_view = planner(net, **kind), planner(net, **(kind | {"context": 12}))
    past, state = given(1, m, seed=m)
    numbers = p.numbers(np.random.default_rng(m).random((1, 2), np.float32))
    plan = p.plan(past, state, numbers)
    begins = past[0, max(0, m - p.search.context + 1) :]
    tokens, score = plain_plan(
        all_in_view, begins, state[0], {name: values[0] for name, values in numbers.items()}
    )
    assert plan.tokens[0].tolist() == tokens.tolist()
    assert float(plan.score[0]) == pytest.approx(score, rel=1e-4, abs=1e-4)


@torch.no_grad()
def test_rotary_positions_see_distances_alone():
    """What is predicted behind a window does not depend on where it stands; with learned places it
    does."""
    past, ahead = given(1, 2)[0], torch.full((1, 1, DIMS), BINS - 1)
    for positions, same in (("rotary", True), ("learned", False)):
        net = network(4, positions=positions)
        sequence = net.embed(torch.cat([past, torch.zeros_like(past[:, :1])], 1)).flatten(1, 2)[
            :, : 2 * DIMS + SEEN
        ]
        alone = net.transformer(sequence)[:, -1]
        mask = torch.ones(1, 3 * DIMS + SEEN, dtype=torch.bool)
        mask[:, :DIMS] = False
        behind = net.transformer(
            torch.cat([net.embed(ahead).flatten(1, 2), sequence], 1), mask=mask
        )[:, -1]
        assert torch.allclose(alone, behind, atol=1e-5) == same


def test_a_search_over_everything_finds_the_most_likely_of_all():
    """With more beams than there are sequences, against the product of all probabilities."""
    p = planner(network(3), horizon=1, beams=200, k_act=0, k_rew=1)
    past, state = given(1, 1)
    found = p.most_likely_plan(past, state)
    best = -np.inf
    for a in range(BINS):
        for b in range(3):
            sequence, total = [*past.flatten().tolist(), *state[0].tolist()], 0.0
            for token in (a, b):
                logits = logits_after(p.net, sequence, 3)
                logits[BINS] = -torch.inf
                total += float(logits.log_softmax(0)[token])
                sequence.append(token)
            best = max(best, total)
    assert float(found.score) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("kind", [{}, {"k_obs": 0}, {"k_act": 1, "expansions": 3}])
@pytest.mark.parametrize("at_once", [pytest.param(256, marks=pytest.mark.slow), 12])
def test_many_environments_are_planned_as_each_alone(kind, at_once, positions, monkeypatch):
    monkeypatch.setattr(beam, "BEAMS_ON_CPU", at_once)
    p = planner(network(2, positions=positions), **kind)
    past, state = given(5, 3)
    past[3], state[3] = past[1], state[1]  # two that agree
    uniforms = np.random.default_rng(0).random((5, 2), np.float32)
    together = p.plan(past, state, p.numbers(uniforms))
    likely = p.most_likely_plan(past, state)
    acted = p.act(past, state, torch.from_numpy(uniforms))
    for i in range(5):
        one = slice(i, i + 1)
        assert (
            p.plan(past[one], state[one], p.numbers(uniforms[one])).tokens.tolist()
            == together.tokens[one].tolist()
        )
        assert (
            p.most_likely_plan(past[one], state[one]).tokens.tolist() == likely.tokens[one].tolist()
        )
        assert (
            p.act(past[one], state[one], torch.from_numpy(uniforms[one])).tolist()
            == acted[one].tolist()
        )


def test_environments_whose_filters_leave_fewer_sequences_are_planned_beside_others(monkeypatch):
    monkeypatch.setattr(beam, "BEAMS_ON_CPU", 40)
    p = planner(network(3, std=0.6), beams=20, horizon=1, k_act=0, cdf_act=0.6)
    past, state = given(9, 2)
    together = p.fan(past, state, None)
    counts = set()
    for i in range(9):
        alone = p.fan(past[i : i + 1], state[i : i + 1], None)
        count = alone.score.shape[1]
        counts.add(count)
        assert (
            together.tokens[i, :count].tolist() == alone.tokens[0].tolist()
            and (together.score[i, count:] == -torch.inf).all()
        )
    assert len(counts) > 1


def test_an_action_without_a_plan_follows_the_distribution_of_its_tokens():
    p = planner(network(4))
    past, state = given(1, 2)
    sequence = [*past.flatten().tolist(), *state[0].tolist()]
    want = []
    for _ in range(ACTED):
        logits = logits_after(p.net, sequence, 3)
        logits[BINS] = -torch.inf
        want.append(logits.softmax(0))
        sequence.append(int(logits.argmax()))
    assert p.act(past, state, None)[0].tolist() == sequence[-ACTED:]
    many = p.act(
        past.expand(4000, -1, -1),
        state.expand(4000, -1),
        torch.rand(4000, ACTED, generator=torch.Generator().manual_seed(0)),
    )
    share = torch.bincount(many[:, 0], minlength=BINS + 1) / 4000
    torch.testing.assert_close(share, want[0], atol=0.03, rtol=0)
    assert many[:, 1].max() < 3, "a dimension of three choices has three"


def test_what_agrees_is_computed_once():
    encoder = WindowEncoder(network(5))
    past, state = given(1, 2)
    many = past.expand(7, -1, -1).clone()
    many[4, 1, 0] = (many[4, 1, 0] + 1) % BINS
    many[5, 1, -1] = (many[5, 1, -1] + 1) % BINS  # a value: nobody but itself looks at it
    trunk, which = encoder.trunk(many, None, 0)
    assert (
        len(trunk.last) == 3
        and len(which.unique()) == 3
        and (which[[0, 1, 2, 3, 6]] == which[0]).all()
    )
    trunk, which = encoder.trunk(many, state.expand(7, -1), 0)
    assert len(trunk.last) == 2


@torch.no_grad()
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("m", [0, 2])
def test_the_encoder_in_pieces_is_the_forward_pass(m, positions):
    net = network(6, positions=positions)
    encoder, places = WindowEncoder(net), net.dims * m
    past, state = given(4, m)
    tokens = torch.randint(0, 3, (4, ACTED + 1))
    whole = torch.cat([past.flatten(1), state, tokens], 1)
    want = net.transformer(
        torch.stack([net.embed(whole[:, i], i % DIMS) for i in range(whole.shape[1])], 1)
    )
    trunk, which = encoder.trunk(past, state, ACTED + 1)
    trunk = trunk.take(which)
    torch.testing.assert_close(trunk.last, want[:, places + SEEN - 1], atol=1e-5, rtol=1e-4)
    own = encoder.allocate(len(trunk.last), 2, ACTED + 1)
    for j in range(ACTED + 1):
        branched = encoder.branch(
            trunk, own, tokens[:, j, None].repeat(1, 2), SEEN + j, places + SEEN + j, j
        )
        torch.testing.assert_close(
            branched, want[:, None, places + SEEN + j].expand(-1, 2, -1), atol=1e-5, rtol=1e-4
        )
    for j in range(ACTED + 1):
        encoder.step(trunk, tokens[:, j], SEEN + j, places + SEEN + j)
        torch.testing.assert_close(trunk.last, want[:, places + SEEN + j], atol=1e-5, rtol=1e-4)


def test_another_network_is_not_planned_with_as_if_it_were_this_one():
    for change in (
        lambda net: setattr(net.transformer.blocks[1], "activation", torch.nn.GELU("tanh")),
        lambda net: setattr(net.transformer.blocks[0], "activation", torch.nn.ReLU()),
        lambda net: setattr(net.transformer.blocks[1], "norm2", torch.nn.RMSNorm(16)),
        lambda net: setattr(net.transformer, "rotary", True),
        lambda net: setattr(net.transformer, "table", None),
    ):
        net = network()
        WindowEncoder(net)
        change(net)
        with pytest.raises(AssertionError):
            WindowEncoder(net)


def test_filters_keep_what_their_rules_say():
    probability = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    everything = {0, 1, 2, 3, 4}
    cases = [
        (0, 0.61, {1}),
        (0, 0.55, {1, 3}),
        (0, 0.04, everything),
        (2, 0, {1, 3}),
        (2, 0.1, {1, 3}),
        (9, 0, everything),
        (1, 0.99, {1}),
    ]
    for k, cdf, kept in cases:
        out = filter_logits(probability.log(), k, cdf)
        assert set((out > -torch.inf).nonzero().flatten().tolist()) == kept, (k, cdf)
    assert (filter_logits(torch.zeros(4), 0, 0.9) > -torch.inf).all(), "of equals all stay"


def test_draws_never_take_what_is_closed():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]).expand(1000, 5)
    chance = torch.linspace(0, 1 - 2**-24, 1000)
    tokens = sample_tokens(logits, 0, chance)
    assert set(tokens.tolist()) == {1, 3} and tokens[0] == 1 and tokens[-1] == 3
    assert float((tokens == 3).float().mean()) == pytest.approx(np.e / (1 + np.e), abs=0.002)


def test_a_context_that_the_network_has_not_is_said():
    with pytest.raises(ValueError, match="context of 7"):
        planner(network(), context=7)


def test_rows_of_a_trunk_are_moved_in_place():
    p = planner(network(7), beams=12, k_act=0, k_obs=2, k_rew=2)
    past, state = given(3, 2)
    found = p.most_likely_plan(past, state)
    assert found.tokens.shape == (3, 4, DIMS) and (found.score.diff() != 0).all()


# --- goals


@torch.no_grad()
@pytest.mark.parametrize("context", [2, 3])
def test_with_a_goal_too_the_most_likely_tokens_are_those_of_full_forward_passes(context):
    """One beam, three environments with goals of their own, a longer plan than the context: every
    token is the argmax of the whole network."""
    torch.manual_seed(3)
    net = TrajectoryTransformer([0] * DIMS, BINS, 4, 16, 2, 2, goal=SEEN).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.4)
    net.requires_grad_(False)
    searcher = planner(net, beams=1, horizon=4, context=context, k_act=0)
    past, state = given(3, 1)
    goals = torch.tensor([[0, 1, 2], [8, 8, 8], [0, 1, 2]])
    plan = searcher.most_likely_plan(past, state, goals).tokens
    for i in range(3):
        sequence = [*past[i].flatten().tolist(), *state[i].tolist()]
        while len(sequence) < DIMS * 5:
            here = cropped(sequence, context)
            k = len(here) // DIMS + 1
            tokens = torch.zeros(1, k * DIMS, dtype=torch.int64)
            tokens[0, : len(here)] = torch.tensor(here)
            logits = net(tokens.view(1, k, DIMS), goals[i : i + 1]).view(DIMS, k, BINS + 1)[
                len(here) % DIMS, len(here) // DIMS
            ]
            if DIMS <= len(sequence) < DIMS + SEEN + ACTED:
                logits[BINS] = -torch.inf  # the first action is no stop token
            sequence.append(int(logits.argmax()))
        assert plan[i].flatten().tolist() == sequence[DIMS:]
    assert (
        searcher.act(past, state, None, goals).tolist() == plan[:, 0, SEEN : SEEN + ACTED].tolist()
    )
    assert (
        searcher.most_likely_plan(past, state, goals).score[0]
        != searcher.most_likely_plan(past[:1], state[:1], goals[1:2]).score[0]
    ), "the goal is looked at"
    numbers = searcher.numbers(np.random.default_rng(0).random((3, 2), np.float32))
    together = searcher.plan(past, state, numbers, goals)
    alone = searcher.plan(
        past[1:2], state[1:2], {k: v[1:2] for k, v in numbers.items()}, goals[1:2]
    )
    assert together.tokens[1].tolist() == alone.tokens[0].tolist()


@torch.no_grad()
def test_a_search_for_the_goal_takes_the_beam_that_is_there_soonest_and_the_first_where_none_is():
    torch.manual_seed(3)
    net = TrajectoryTransformer([0] * DIMS, BINS, 4, 16, 2, 2, goal=SEEN).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.4)
    net.requires_grad_(False)
    searcher = planner(
        net,
        beams=16,
        expansions=1,
        horizon=4,
        context=3,
        k_act=0,
        k_obs=0,
        discount=0.5,
        reach=True,
    )
    past, state = given(1, 1)
    numbers = searcher.numbers(np.random.default_rng(0).random((1, 2), np.float32))
    nowhere = torch.full((1, SEEN), BINS - 1)
    first = searcher.fan(past, state, numbers, nowhere)
    assert (first.tokens[0, :, 0, :SEEN] == state).all()
    walked = first.tokens[0, :, :, :SEEN]
    assert (walked[:, 1:] != nowhere).any(-1).all() and (first.score == 0).all()
    searcher.encoder.trunk = lambda past, state, room, goal, was=searcher.encoder.trunk: was(
        past, state, room, goal if goal is None else nowhere[:1].expand(len(past), -1)
    )
    # the network is told of `nowhere`, so that it draws the same beams, and the search of where
    # they went
    for k, steps in (
        (9, 1),
        (5, 2),
        (12, 3),
    ):
        goal = walked[k, steps][None]
        soonest = (
            (walked[:, 1:] == goal)
            .all(-1)
            .float()
            .mul(torch.tensor([0.5, 0.25, 0.125]))
            .max(1)
            .values
        )
        found = searcher.fan(past, state, numbers, goal)
        assert (
            found.score[0].tolist() == soonest.sort(descending=True).values.tolist()
            and found.score[0, 0] >= 0.5**steps
        )
        assert (found.best.tokens[0, 1:, :SEEN] == goal).all(-1).any()


def test_a_goal_is_told_to_networks_that_expect_one_only():
    past, state = given(1, 1)
    for goal, told in ((0, torch.zeros(1, SEEN, dtype=torch.int64)), (SEEN, None)):
        with pytest.raises(ValueError, match="goal"):
            planner(TrajectoryTransformer([0] * DIMS, BINS, 4, 16, 2, 2, goal=goal).eval()).act(
                past, state, None, told
            )


@torch.no_grad()
@pytest.mark.parametrize("m", [0, 1, 3])
def test_open_loop_predictions_are_those_of_full_forward_passes(m):
    net = network()
    searcher = planner(net)
    past, state = given(2, m)
    actions = torch.randint(0, 3, (2, 5, ACTED), generator=torch.Generator().manual_seed(1))
    states = searcher.follow(past, state, actions)
    for i in range(2):
        sequence = [*past[i].flatten().tolist(), *state[i].tolist()]
        for t in range(5):
            sequence += actions[i, t].tolist()
            for _ in range(2 + SEEN):
                sequence.append(
                    int(logits_after(net, sequence, searcher.search.context)[:-1].argmax())
                )
            assert states[i, t].tolist() == sequence[-SEEN:]


@pytest.mark.parametrize("goal", [0, SEEN])
def test_open_loop_predictions_of_many_are_made_some_at_a_time_and_equal(goal, monkeypatch):
    torch.manual_seed(1)
    net = (
        TrajectoryTransformer([0] * DIMS, BINS, 4, 16, 2, 2, goal=goal).eval().requires_grad_(False)
    )
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    searcher = planner(net)
    past, state = given(7, 1)
    actions = torch.randint(0, 3, (7, 3, ACTED), generator=torch.Generator().manual_seed(1))
    goals = (
        torch.randint(0, BINS, (7, SEEN), generator=torch.Generator().manual_seed(2))
        if goal
        else None
    )
    whole = searcher.follow(past, state, actions, goals)
    at_once = []
    searcher.encoder.trunk = lambda past, *rest, was=searcher.encoder.trunk: (
        at_once.append(len(past)) or was(past, *rest)
    )
    monkeypatch.setattr(beam, "BEAMS_ON_CPU", 3)
    assert searcher.follow(past, state, actions, goals).tolist() == whole.tolist()
    assert max(at_once) == 3 and at_once[-1] == 1
