import random

import numpy as np

from synthboot.data import near_duplicates


def test_shingles_are_runs_of_five_words_and_of_letters_where_words_are_not_spaced() -> None:
    assert near_duplicates.shingles("One two, three four five SIX") == ["one two three four five", "two three four five six"]
    assert near_duplicates.shingles("日本語の文章は") == ["日 本 語 の 文", "本 語 の 文 章", "語 の 文 章 は"]


def edited(words: list[str], changes: int, rng: random.Random) -> list[str]:
    words = list(words)
    for place in rng.sample(range(len(words)), changes):
        words[place] = f"changed{rng.randrange(10**6)}"
    return words


def test_near_duplicates_are_exactly_those_above_the_threshold() -> None:
    rng = random.Random(3)
    texts = []
    for _ in range(60):
        words = [f"w{rng.randrange(5_000)}" for _ in range(120)]
        texts.append(" ".join(words))
        texts.append(" ".join(edited(words, rng.choice([1, 2, 3, 6, 10]), rng)))
    group = near_duplicates.groups(near_duplicates.signatures(texts), texts, 0.8)
    shingles = [near_duplicates.shingles(t) for t in texts]
    for i in range(len(texts)):
        for j in range(i):
            near = near_duplicates.jaccard(shingles[i], shingles[j]) >= 0.8
            assert (group[i] == group[j]) == near


def test_large_buckets_of_templated_text_are_joined() -> None:
    texts = ["this is a very common template about nothing in particular at all " * 4] * 100
    assert len(set(near_duplicates.groups(near_duplicates.signatures(texts), texts, 0.8))) == 1


def test_no_documents_no_groups() -> None:
    assert len(near_duplicates.groups(np.empty((0, 126), np.uint32), [], 0.8)) == 0
