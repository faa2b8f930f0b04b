"""Topics of vectors whose clusters are known."""

import numpy as np
import pytest

from synthboot.stages import topics

WORDS = ["sea ship harbour", "bread oven flour", "star orbit comet"]


def clustered(docs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around three axes, and which of these each is near."""
    random = np.random.default_rng(seed)
    kind = random.integers(3, size=docs)
    vectors = np.eye(8)[kind] + random.normal(0, 0.1, (docs, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16), kind


def test_topics_are_the_clusters_and_named_by_what_only_they_say() -> None:
    vectors, kind = clustered(300, seed=0)
    centres = topics.topics(vectors, 3, seed=0)
    topic = topics.assigned(vectors, centres)
    # each topic is one of the clusters, whatever its number
    of_kind = [int(np.bincount(topic[kind == k]).argmax()) for k in range(3)]
    assert sorted(of_kind) == [0, 1, 2]
    assert (topic == np.array(of_kind)[kind]).all()
    assert (centres == topics.topics(vectors, 3, seed=0)).all()

    texts = [f"the {WORDS[k]} of the {i}" for i, k in enumerate(kind)]
    names = topics.named(texts, topic, 3)
    for k, number in enumerate(of_kind):
        said = set(names[number].split(": ")[1].split(", "))
        assert set(WORDS[k].split()) < said
        assert "the" not in said
        assert names[number].startswith(f"{number + 1}: ")


@pytest.mark.parametrize(("docs", "count"), [(7, 1), (40, 5), (300, 20)])
def test_few_documents_have_few_topics(docs: int, count: int) -> None:
    vectors, _ = clustered(docs, seed=1)
    assert len(topics.topics(vectors, 20, seed=0)) == count
    assert topics.assigned(vectors[:0], topics.topics(vectors, 20, seed=0)).tolist() == []


def test_gained_and_lost_are_by_shares_and_the_distance_is_half_of_what_they_differ_by() -> None:
    by_kind = {
        "D_pretrain": np.repeat([0, 1, 2], [50, 40, 10]),
        "unseen real": np.repeat([0, 1, 2], [5, 4, 1]),
        "related": np.repeat([0, 2], [10, 10]),
        "none": np.empty(0, np.int64),
    }
    found = topics.compared(by_kind, ["a", "b", "c"])
    assert found.shares["related"] == (0.5, 0.0, 0.5)
    assert found.distance == {"unseen real": 0.0, "related": pytest.approx(0.4)}
    assert found.gained == {"unseen real": (), "related": (2,)}
    assert found.lost == {"unseen real": (), "related": (1,)}
    assert found.docs == {"D_pretrain": 100, "unseen real": 10, "related": 20}
