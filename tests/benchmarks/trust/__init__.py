"""Peers' own code on our datasets, at the learner steps, batch size and layers of a table's cell.

    python -m tests.benchmarks.trust value-based --peer PEER/bin/python --only hopper --only seed=1
    python -m tests.benchmarks.trust imitation --peer PEER/bin/python --code BAIL --only BAIL
    python -m tests.benchmarks.trust dt-context --peer PEER/bin/python --code DT --only "DT "
    python -m tests.benchmarks.trust tt --peer PEER/bin/python --code TT --only quantile
    python -m bigdm_ray.reproduce value-based --show            prints them as "peer, same data"

PEER is a virtual environment with torch, gymnasium with MuJoCo, and d3rlpy 2.8.1 (value-based) or
transformers 4.30.2 (dt-context); the others need the repository of the method's authors, a checkout
of which --code names: lanyavik/BAIL, kzl/decision-transformer, jannerm/trajectory-transformer. What
the cell's algorithm has a setting for is as in the cell; the rest is as in the peer's own
reproductions. A fault of a peer that hides what is compared is mended here, and the peer then named
so. A finished cell is a small JSON file under docs/results/peers, beside the cells that
`reproduce` keeps, and is not run again.

A module of this package is a peer: `COLUMNS` of tables that it can stand beside, and `program`, the
text of a program for its Python, which answers lines (`tests.benchmarks.common.Peer`): a number of
steps, once taken, with what they cost; observations with actions, where it acts through us; and
`{"play": n}` with the returns of n episodes, where it acts by itself.
"""
