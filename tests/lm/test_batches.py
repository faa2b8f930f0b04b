from typing import Any, Literal

import numpy as np
import pytest

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.lm.arm import Sources, plan_of
from synthboot.lm.batches import IGNORE, PairForm, PairPlan, Plan, cut_pair, d1_room, joined_contexts, pair_row
from synthboot.lm.streams import Stream, megadocs, packed_pairs, shuffled

REPLAY = Tokens.of([[900 + i] * 7 + [0] for i in range(5)])
REAL = Tokens.of([[100 + i] * (3 + i % 5) + [0] for i in range(20)])
SYNTHETIC = Tokens.of([[500 + i] * 9 + [0] for i in range(40)])


def plan(share: float, **changes: Any) -> Plan:
    options = {"seq_len": 16, "batch_tokens": 64, "train_tokens": 64 * 10, "seed": 1, "end": 0} | changes
    return Plan(REAL, SYNTHETIC if share else None, share, **options)


def test_a_stream_reads_every_document_once_a_pass_wherever_it_is_cut() -> None:
    stream = Stream(REAL, shuffled(len(REAL), 7, "plan.synthetic"))
    total = REAL.num_tokens
    whole = stream.read(0, 3 * total)
    pieces = np.concatenate([stream.read(i, min(11, 3 * total - i)) for i in range(0, 3 * total, 11)])
    assert (whole == pieces).all()
    orders = []
    for number in range(3):
        one = whole[number * total : (number + 1) * total]
        assert sorted(one.tolist()) == sorted(t for i in range(20) for t in REAL[i].tolist())
        orders.append(one[np.flatnonzero(np.diff(one, prepend=0) > 0)].tolist())
    assert orders[0] != orders[1]


def test_every_token_of_the_stream_is_a_target_exactly_once() -> None:
    p = plan(0.0)
    targets = np.concatenate([p.batch(s).targets.ravel() for s in range(p.steps)])
    assert (targets == Stream(REAL, shuffled(len(REAL), 1, "plan.real")).read(0, len(targets))).all()
    inputs = np.concatenate([p.batch(s).inputs.ravel() for s in range(p.steps)])
    assert inputs[0] == 0
    assert (inputs[1:] == targets[:-1]).all()


def test_a_batch_depends_on_the_step_alone() -> None:
    p, q = plan(0.5), plan(0.5)
    for step in reversed(range(p.steps)):
        q.batch(step)
    assert all((p.batch(s).inputs == plan(0.5).batch(s).inputs).all() for s in range(p.steps))
    assert not (plan(0.5, seed=2).batch(0).inputs == p.batch(0).inputs).all()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.33])
def test_shares_are_exact_and_token_counts_say_what_is_read(share: float) -> None:
    p = plan(share)
    rows = np.concatenate([p.batch(s).targets for s in range(p.steps)])
    synthetic = [bool((row >= 500).any()) for row in rows]
    counts = p.token_counts()
    assert sum(synthetic) == round(share * 40)
    assert counts.synthetic_tokens == sum(synthetic) * 16
    assert counts.real_tokens + counts.synthetic_tokens == counts.train_tokens == 640
    assert counts.real_epochs == pytest.approx(counts.real_tokens / REAL.num_tokens)
    window = np.convolve(synthetic, np.ones(8), "valid")
    assert window.max() - window.min() <= 1  # spread evenly


@pytest.mark.parametrize("order", ["mixed", "synthetic_first"])
def test_replayed_rows_are_spread_evenly_and_other_shares_are_of_the_rest(order: str) -> None:
    p = plan(0.5, replay=REPLAY, replay_share=0.25, order=order)
    rows = np.concatenate([p.batch(s).targets for s in range(p.steps)])
    replayed, synthetic = ((rows >= 900).any(1), ((rows >= 500) & (rows < 900)).any(1))
    counts = p.token_counts()
    assert (replayed.sum(), synthetic.sum()) == (10, 15)
    assert not (replayed & synthetic).any()
    assert (counts.real_tokens, counts.synthetic_tokens, counts.replayed_tokens) == (15 * 16, 15 * 16, 10 * 16)
    assert counts.replayed_epochs == pytest.approx(160 / REPLAY.num_tokens)
    window = np.convolve(replayed, np.ones(8), "valid")
    assert window.min() == window.max() == 2
    assert (synthetic[~replayed][:15].all()) == (order == "synthetic_first")
    assert np.concatenate(rows[replayed]).tolist() == p.replay.read(0, 160).tolist()
    for steps in range(p.steps + 1):
        read = {"replayed_tokens": replayed, "synthetic_tokens": synthetic, "real_tokens": ~replayed & ~synthetic}
        assert p.sources(steps) == {name: int(kind[: 4 * steps].sum()) * 16 for name, kind in read.items()}
    assert "replayed documents" in p.describe(0) or "replayed documents" in p.describe(1)


def test_synthetic_text_is_read_in_one_pass_without_repeats() -> None:
    p = plan(0.5)
    rows = np.concatenate([p.batch(s).targets for s in range(p.steps)])
    read = np.concatenate([row for row in rows if (row >= 500).any()])
    assert max(np.bincount(read)[500:]) <= 9


@pytest.mark.parametrize(("d1", "d2", "expected"), [(5, 5, (5, 5)), (50, 10, (20, 10)), (5, 50, (5, 25)), (50, 50, (10, 20))])
def test_cut_pair_gives_each_its_share_and_the_rest_to_who_needs_it(d1: int, d2: int, expected: tuple[int, int]) -> None:
    assert cut_pair(d1, d2, PairForm(31, 1 / 3, 0, 1)) == expected


def test_pair_row_takes_the_loss_on_d2_and_its_end_alone() -> None:
    inputs, targets = pair_row(np.array([11, 12, 0]), np.array([21, 22, 23, 0]), PairForm(32, 0.5, 0, 1))
    assert inputs.tolist() == [0, 11, 12, 1, 21, 22, 23]
    assert targets.tolist() == [IGNORE, IGNORE, IGNORE, 21, 22, 23, 0]


def test_a_cut_d2_does_not_learn_to_end() -> None:
    inputs, targets = pair_row(np.arange(11, 31), np.array([*range(40, 60), 0]), PairForm(16, 0.5, 0, 1))
    assert len(inputs) == 16
    assert inputs[0] == 0
    assert 0 not in targets
    assert targets[-1] == 40 + (targets != IGNORE).sum() - 1


def packed(seed: int = 0) -> tuple[PairPlan, list[tuple[int, int]]]:
    pairs = [(i, j) for i in range(20) for j in range(20) if i != j and (i + j) % 3 == 0]
    p = PairPlan(
        REAL,
        [a for a, _ in pairs],
        [b for _, b in pairs],
        PairForm(24, 0.4, 0, 1),
        batch_tokens=96,
        tokens=96 * 100,
        seed=seed,
    )
    return p, pairs


def test_packing_holds_every_pair_once_a_pass_and_segments_never_mix() -> None:
    p, pairs = packed()
    rows = p.rows_per_epoch()
    found = []
    for step in range(rows // p.rows):
        batch = p.batch(step)
        assert batch.segments is not None
        assert batch.positions is not None
        for inputs, targets, segments, positions in zip(
            batch.inputs, batch.targets, batch.segments, batch.positions, strict=True
        ):
            for number in range(1, segments.max() + 1):
                part = segments == number
                x, y = inputs[part], targets[part]
                assert positions[part].tolist() == list(range(len(x)))
                place = x.tolist().index(1)
                d1, d2 = x[1] - 100, y[place] - 100
                expected = pair_row(REAL[d1], REAL[d2], p.form)
                assert (x == expected[0]).all()
                assert (y == expected[1]).all()
                found.append((int(d1), int(d2)))
            assert (targets[segments == 0] == IGNORE).all()
    missing = len(pairs) - len(found)
    assert 0 <= missing <= 3 * p.rows  # the rows of an unfinished batch
    assert len(set(found)) == len(found)


def test_pair_batches_depend_on_the_step_alone() -> None:
    p, _ = packed()
    q, _ = packed()
    q.batch(30)
    assert all((p.batch(s).inputs == q.batch(s).inputs).all() for s in (0, 17, 40))


def test_a_walk_reads_every_document_once_and_goes_to_the_most_similar_one_not_yet_read() -> None:
    d1, d2 = np.array([0, 0, 1, 2, 5]), np.array([1, 3, 2, 0, 5 - 1])  # most similar first for each d1
    order = packed_pairs(d1, d2, 6, 3, "plan.real")
    passes = [order(n).tolist() for n in range(40)]
    near = {0: [1, 3], 1: [2], 2: [0], 5: [4]}
    for found in passes:
        assert sorted(found) == list(range(6))
        for place, doc in enumerate(found[:-1]):
            unread = [d for d in near.get(doc, []) if d not in found[: place + 1]]
            assert not unread or found[place + 1] == unread[0]
    assert passes[0] == order(0).tolist()
    assert len({tuple(p) for p in passes}) > 3


def test_related_documents_lie_next_to_each_other_in_a_packed_plan() -> None:
    pairs = (np.arange(0, 20, 2), np.arange(1, 20, 2))
    laid = plan(0.0, pairs=pairs)
    docs = laid.real.documents(0, REAL.num_tokens)
    beside = sum(docs[i + 1] == doc + 1 for i, doc in enumerate(docs[:-1]) if doc % 2 == 0)
    assert beside >= 5  # the others were begun in their middle: the second of a pair had been read
    assert sorted(docs) == list(range(20))


def test_megadocs_put_what_was_written_from_a_document_right_before_it() -> None:
    owners, window = np.array([3, 0, 3, 3, 1, 0]), 26
    lengths = np.concatenate((REAL.lengths, np.full(6, 10)))
    order = megadocs(owners, lengths, window, 1, "plan.synthetic")
    found = order(0).tolist()
    assert sorted(d for d in found if d >= 20) == list(range(20, 26))  # each synthetic document once
    run: list[int] = []
    for doc in found:
        run.append(doc)
        if doc < 20:
            assert {int(owners[d - 20]) for d in run[:-1]} == {doc}
            assert sum(lengths[d] for d in run) <= window or len(run) == 2
            run = []
    assert not run
    assert order(0).tolist() == found


def test_a_megadoc_plan_counts_the_real_text_inside_as_real() -> None:
    owners = np.arange(40) % 20
    laid = plan(0.4, owners=owners)
    counts = laid.token_counts()
    tokens = np.concatenate([laid.batch(s).targets.ravel() for s in range(laid.steps)])
    where = {doc: kind for kind, docs in (("real", range(100, 120)), ("synthetic", range(500, 540))) for doc in docs}
    rows = [[where[t] for t in row if t != 0] for step in range(laid.steps) for row in laid.batch(step).targets.tolist()]
    synthetic = sum(kind == "synthetic" for row in rows for kind in row)
    assert abs(counts.synthetic_tokens - 0.4 * len(tokens)) <= 16
    assert abs(synthetic * 10 / 9 - counts.synthetic_tokens) < 20  # end tokens, which look alike, are one in ten
    assert counts.real_tokens + counts.synthetic_tokens == len(tokens)


def test_megadocs_that_cannot_hold_the_share_are_an_error() -> None:
    with pytest.raises(BudgetError, match=r"megadocs hold .* lower the arm's share"):
        plan(0.9, owners=np.arange(40) % 20)


def test_noise_replaces_inputs_and_leaves_targets_and_document_ends() -> None:
    clean, noisy = plan(0.5), plan(0.5, noise=0.15, vocab_size=1_000)
    struck = total = 0
    for step in range(clean.steps):
        a, b = clean.batch(step), noisy.batch(step)
        assert (a.targets == b.targets).all()
        assert ((a.inputs == 0) == (b.inputs == 0)).all()
        assert b.inputs.max() < 1_000
        struck, total = struck + int((a.inputs != b.inputs).sum()), total + int((a.inputs != 0).sum())
        assert (noisy.batch(step).inputs == b.inputs).all()
    assert 0.1 < struck / total < 0.2
    assert (noisy.batch(0).inputs != noisy.batch(1).inputs).any()


@pytest.mark.parametrize(("separator", "kept"), [(1, 11 + 8), (None, 16 + 11)], ids=["beside d1", "alone"])
def test_how_much_of_d2_rows_have_room_for_is_known(separator: int | None, kept: int) -> None:
    texts = Tokens.of([[*range(10, 10 + length), 0] for length in (20, 4, 10)])
    laid = PairPlan(texts, [1, 2], [0, 2], PairForm(16, 0.5, 0, separator), batch_tokens=16, tokens=16, seed=0)
    assert laid.kept_share == kept / (21 + 11)


def test_late_passes_of_pairs_are_not_packed_over_and_over() -> None:
    rng = np.random.default_rng(0)
    d1, d2 = rng.integers(0, 20, (2, 60)).tolist()
    laid = PairPlan(REAL, d1, d2, PairForm(32, 0.4, 0, 1), batch_tokens=64, tokens=32 * 400, seed=0)
    epochs = laid.steps * laid.rows / laid.rows_per_epoch()
    assert epochs > 6
    first = [laid.batch(step) for step in range(laid.steps)]
    assert epochs - 1 < laid.row_pairs.cache_info().misses < epochs + 2  # type: ignore[attr-defined]
    again = laid.batch(laid.steps - 1)
    assert (again.inputs == first[-1].inputs).all()


@pytest.mark.parametrize(("layout", "apart"), [("shuffled", True), ("megadoc", False)])
def test_documents_that_a_layout_sets_side_by_side_see_each_other(layout: Literal["shuffled", "megadoc"], apart: bool) -> None:
    arm = config.Arm(synthetic="related", share=0.5, layout=layout)
    cfg = config.Config(
        name="x",
        budget=config.Budget(unique_tokens=100, train_tokens=512),
        arms={"repetition": config.Arm(), "sbp": arm},
        corpus=config.Corpus(source="none"),
        model=config.Model(seq_len=32),
        optim=config.Optim(batch_tokens=64, document_mask=True),
    )
    text = Sources(REAL, SYNTHETIC, np.arange(40) % 20)
    batch = plan_of(cfg, arm, 0, tokenizers.train(iter(["a b"]), 258), text, 128).batch(0)
    assert (batch.segments is not None) == apart


def test_without_a_separator_every_d2_is_seen_alone_as_often_as_there_are_pairs_of_it() -> None:
    d1, d2 = [1, 2, 3, 4, 5, 6], [0, 0, 0, 9, 9, 7]
    laid = PairPlan(REAL, d1, d2, PairForm(24, 0.4, 0, None), batch_tokens=24, tokens=240, seed=0, contexts=3)
    found = []
    for step in range(laid.rows_per_epoch()):
        batch = laid.batch(step)
        assert batch.segments is not None
        assert batch.positions is not None
        for number in range(1, batch.segments.max() + 1):
            inside = batch.segments == number
            assert batch.positions[inside].tolist() == list(range(inside.sum()))
            assert batch.inputs[inside].tolist() == [0, *batch.targets[inside][:-1].tolist()]  # after an end, as any document
            found.append(batch.targets[inside].tolist())
    assert sorted(found) == sorted(REAL[doc][:24].tolist() for doc in d2)


def with_contexts(contexts: int) -> PairPlan:
    d1, d2 = [1, 2, 3, 4, 5], [0, 0, 0, 9, 9]  # most similar first
    return PairPlan(REAL, d1, d2, PairForm(32, 0.6, 0, 1), batch_tokens=64, tokens=640, seed=0, contexts=contexts)


def prompts(laid: PairPlan) -> set[tuple[int, ...]]:
    """What stands before d2 in one pass, d2 by its first token behind it."""
    found = set()
    for row in range(laid.rows_per_epoch()):
        batch = laid.batch(row // laid.rows)
        assert batch.segments is not None
        segments, inputs, targets = (a[row % laid.rows] for a in (batch.segments, batch.inputs, batch.targets))
        for number in range(1, segments.max() + 1):
            x, y = inputs[segments == number], targets[segments == number]
            given = int((y == IGNORE).sum())
            found.add((*x[: given + 1].tolist(), int(y[given])))
    return found


def test_other_d1_of_a_d2_stand_before_its_d1_the_more_similar_the_later() -> None:
    def text(*docs: int) -> tuple[int, ...]:
        """Each cut to an equal part of d1's room, int(31 * 0.6) = 18, separators taken off."""
        room = 18 if len(docs) == 1 else (18 - len(docs) + 1) // len(docs)
        pieces = [[*REAL[doc][:-1][:room].tolist(), 1] for doc in docs]
        return (0, *[token for piece in pieces for token in piece])

    assert prompts(with_contexts(1)) == {
        (*text(1), 100), (*text(2), 100), (*text(3), 100), (*text(4), 109), (*text(5), 109),
    }  # fmt: skip
    assert prompts(with_contexts(2)) == {
        (*text(2, 1), 100), (*text(1, 2), 100), (*text(1, 3), 100), (*text(5, 4), 109), (*text(4, 5), 109),
    }  # fmt: skip
    assert prompts(with_contexts(8)) == {
        (*text(3, 2, 1), 100), (*text(3, 1, 2), 100), (*text(2, 1, 3), 100), (*text(5, 4), 109), (*text(4, 5), 109),
    }  # fmt: skip


def test_contexts_are_cut_so_that_all_fit_the_room_of_d1() -> None:
    long = [np.array([*range(100 * i, 100 * i + 50), 0]) for i in (1, 2, 3)]
    form = PairForm(32, 0.6, 0, 1)
    joined = joined_contexts(long, form)
    assert joined.tolist() == [*range(100, 105), 1, *range(200, 205), 1, *range(300, 305), 0]
    assert len(joined) - 1 <= d1_room(32, 0.6)
    assert joined_contexts(long[:1], form) is long[0]  # pair_row cuts a single one, by what d2 leaves
    inputs, targets = pair_row(joined, np.array([7, 8, 0]), form)
    assert inputs.tolist() == [0, *joined[:-1].tolist(), 1, 7, 8]
    assert targets[-3:].tolist() == [7, 8, 0]


def test_plain_rows_are_documents_alone_and_those_of_pairs_are_as_they_are_without() -> None:
    plain = np.array([6, 7, 8, 10, 11])
    options: dict[str, Any] = {"form": PairForm(24, 0.4, 0, 1), "batch_tokens": 96, "seed": 0}
    d1, d2 = [1, 2, 3, 4, 5], [0, 0, 0, 9, 9]
    mixed = PairPlan(REAL, d1, d2, tokens=96 * 20, plain_share=0.25, plain=plain, **options)
    pure = PairPlan(REAL, d1, d2, tokens=96 * 15, **options)
    assert mixed.sources(20) == {"plain_tokens": 96 * 5, "pair_tokens": 96 * 15}
    rows: list[np.ndarray] = []
    read: list[int] = []
    for step in range(mixed.steps):
        batch = mixed.batch(step)
        assert batch.segments is not None
        assert batch.positions is not None
        for inputs, targets, segments, positions in zip(
            batch.inputs, batch.targets, batch.segments, batch.positions, strict=True
        ):
            if (targets == IGNORE).any():
                rows.append(inputs)
                continue
            assert (targets[:-1] == inputs[1:]).all()
            read += targets.tolist()
            for number in np.unique(segments):
                inside = segments == number
                assert len(set(inputs[inside].tolist()) - {0}) <= 1  # one document, all of one token
                assert positions[inside].tolist() == list(range(inside.sum()))
    assert len(read) == 20 * 24  # a quarter of the rows, spread over the steps
    assert set(read) == {0, *(100 + plain).tolist()}  # and no other documents
    expected = np.concatenate([pure.batch(step).inputs for step in range(pure.steps)])
    assert (np.stack(rows) == expected).all()
    assert "documents " in mixed.describe(0)
    assert "pairs " in mixed.describe(0)
