"""Law: clusters are equal in size, each label is in one, and labels that are alike are together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.xmc.clusters import balanced_clusters, label_vectors
from gossamer.xmc.data import Csr


@given(st.integers(1, 70), st.data())
def test_sizes_differ_by_one_at_most(labels, data):
    clusters = data.draw(st.integers(1, labels))
    vectors = torch.randn(labels, 3, generator=torch.Generator().manual_seed(labels))
    found = balanced_clusters(vectors, clusters)
    sizes = found.bincount(minlength=clusters)
    assert len(found) == labels and len(sizes) == clusters
    assert int(sizes.max()) - int(sizes.min()) <= 1 and int(sizes.min()) >= 1


def test_labels_that_are_alike_are_together():
    centres = torch.eye(8)[:, None, :] + 0.05 * torch.randn(8, 16, 8, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    found = balanced_clusters(centres.flatten(0, 1)[order], 8, seed=3)
    planted = order // 16
    pairs = {(int(a), int(b)) for a, b in zip(found, planted, strict=True)}
    assert len(pairs) == 8  # each cluster is one of those that were planted


def test_the_seed_decides():
    vectors = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(balanced_clusters(vectors, 7, seed=1), balanced_clusters(vectors, 7, seed=1))
    assert not torch.equal(balanced_clusters(vectors, 7, seed=1), balanced_clusters(vectors, 7, seed=2))


def test_equal_and_zero_vectors_still_make_clusters():
    assert balanced_clusters(torch.zeros(10, 4), 3).bincount().tolist() in ([3, 3, 4], [3, 4, 3], [4, 3, 3])


@pytest.mark.parametrize("clusters", [0, -1, 11])
def test_a_wrong_number_is_refused(clusters):
    with pytest.raises(ValueError, match=f"from 1 to the 10 labels, got {clusters}"):
        balanced_clusters(torch.randn(10, 2), clusters)
    with pytest.raises(ValueError, match="finite"):
        balanced_clusters(torch.full((10, 2), torch.nan), 2)


def test_labels_of_the_same_examples_are_alike():
    """A label's vector is made of its examples: same examples, same vector; others, another."""
    labels = Csr.from_lists([[0, 1], [0, 1], [2], [3]], columns=5)
    features = Csr.from_lists([[0, 1], [2], [7], [8]], columns=9)
    vectors = label_vectors(labels, features, dimensions=64)
    assert torch.equal(vectors[0], vectors[1]) and not vectors[4].any()
    near = torch.nn.functional.cosine_similarity(vectors[0], vectors[2], dim=0)
    assert abs(float(near)) < 0.5
