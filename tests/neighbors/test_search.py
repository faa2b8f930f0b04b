from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthboot import config
from synthboot.errors import DataError
from synthboot.neighbors import join, search
from tests.neighbors.test_join import clustered, recall


def cfg(**changes: Any) -> config.Pair:
    return config.Pair(**{"num_neighbors": 8, "search": "ivf", "recall_queries": 400, **changes})


def test_auto_goes_by_size() -> None:
    vectors = clustered(1_000)
    assert search.choose_search(vectors, cfg(search="auto"), 0).kind == "exact"
    assert search.choose_search(vectors, cfg(search="auto", exact_docs=999), 0).kind == "ivf"
    assert search.choose_search(vectors, cfg(search="exact", exact_docs=10), 0).kind == "exact"


@pytest.mark.parametrize("wanted", [0.8, 0.95, 0.99])
def test_as_many_clusters_as_the_recall_takes_and_no_more_than_that(wanted: float) -> None:
    vectors = clustered(6_000, 600)
    neighbors = search.nearest(vectors, cfg(min_recall=wanted))
    truth, _ = join.exact(vectors, vectors, 8, np.arange(6_000))
    real = recall(neighbors.index, truth)
    assert real >= wanted - 0.01
    mean, low, high = neighbors.search.recall
    assert low - 0.01 <= real <= high + 0.01
    told = neighbors.search.describe()
    assert told.kind == "ivf"
    assert told.clusters == search.clusters(6_000)
    by_radius = {probe_radius: (probes, recall_there) for probe_radius, probes, recall_there in told.by_radius}
    probes, recall_there = by_radius[told.probe_radius]
    assert recall_there == pytest.approx(mean, abs=1e-3)
    assert 1 < probes < told.clusters / 2


def test_too_short_a_reach_says_what_would_do() -> None:
    vectors = clustered(4_000, 800)
    with pytest.raises(DataError, match=r"pair\.probe_radius: 0\.0 finds 0\.\d+ .* 0\.\d+ would do") as error:
        search.choose_search(vectors, cfg(probe_radius=0.0, min_recall=0.99), 0)
    enough = float(str(error.value).split(" would do")[0].split()[-1])
    assert search.choose_search(vectors, cfg(probe_radius=enough, min_recall=0.98), 0).probe_radius == enough


def test_query_blocks_grow_with_the_documents_and_leave_work_for_several() -> None:
    sizes = {docs: search.query_block(docs) for docs in (1_000, 100_000, 1_000_000, 582_000_000)}
    assert sizes == {1_000: 65_536, 100_000: 65_536, 1_000_000: 125_000, 582_000_000: 262_144}
    assert [search.blocks(docs) for docs in sizes] == [1, 2, 8, 2_221]


def test_workers_and_finished_query_blocks_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "QUERY_BLOCK", 512)
    vectors, others = clustered(2_000), clustered(100, seed=5)
    for kind in ("ivf", "exact"):
        uninterrupted = search.nearest(vectors, cfg(search=kind), 0, others)
        folder = tmp_path / kind
        first = search.nearest(vectors, cfg(search=kind), 0, others, folder=folder)
        query_blocks = sorted((folder / "query_blocks").glob("[0-9]*"))
        assert len(query_blocks) == 4
        stamps = [block.stat().st_ino for block in query_blocks]
        (query_blocks[3] / "part.json").unlink()  # as if killed before it was sealed
        again = search.nearest(vectors, cfg(search=kind), 0, others, folder=folder, workers=2)
        assert (query_blocks[3] / "part.json").exists()
        assert [block.stat().st_ino for block in query_blocks[:3]] == stamps[:3]
        for other in (first, again):
            assert np.array_equal(uninterrupted.index, other.index)
            assert np.array_equal(uninterrupted.score, other.score)
            assert np.array_equal(uninterrupted.other_index, other.other_index)
        assert uninterrupted.search.describe() == again.search.describe()


@pytest.mark.parametrize("docs", [1, 2, 3, 5])
def test_a_handful_of_documents(docs: int) -> None:
    neighbors = search.nearest(clustered(docs), cfg(num_neighbors=8))
    assert (np.isfinite(neighbors.score).sum(1) == min(8, docs - 1)).all()
