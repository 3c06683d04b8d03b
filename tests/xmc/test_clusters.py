"""Law: clusters are equal in size, each label is in one, and labels that are alike are together."""

import gzip

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.xmc.clusters import balanced_clusters, label_vectors, similar_order
from gossamer.xmc.data import Csr
from gossamer.xmc.data.formats.lines import Malformed
from gossamer.xmc.data.formats.scipy_npz import write_npz
from gossamer.xmc.grouping import as_clusters, read_clusters


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


@given(st.integers(1, 90), st.sampled_from([1, 16, 32]))
def test_an_order_has_every_label_once(labels, group):
    vectors = torch.randn(labels, 3, generator=torch.Generator().manual_seed(labels))
    assert similar_order(vectors, group).sort().values.tolist() == list(range(labels))


def test_runs_of_an_order_are_alike():
    centres = torch.eye(5)[:, None, :] + 0.05 * torch.randn(5, 16, 5, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    found = similar_order(centres.flatten(0, 1)[order], 16, seed=3)
    runs = (order // 16)[found].view(5, 16)
    assert bool((runs == runs[:, :1]).float().mean() > 0.7) and len(set(runs.mode(1).values.tolist())) >= 4


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


def test_clusters_from_a_file_are_those_that_it_says(tmp_path):
    said = [2, 0, 1, 1, 0]
    lines = "".join(f"{at}\n" for at in said).encode()
    (tmp_path / "plain").write_bytes(lines)
    (tmp_path / "windows.txt").write_bytes(lines.replace(b"\n", b"\r\n").rstrip())
    (tmp_path / "packed.gz").write_bytes(gzip.compress(lines))
    write_npz(tmp_path / "matrix.npz", Csr.from_lists([[at] for at in said], 3))
    for name in ("plain", "windows.txt", "packed.gz", "matrix.npz"):
        found = read_clusters(tmp_path / name, 5)
        assert found.dtype == torch.int64 and found.tolist() == said, name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"0\n1\nx\n1\n", r"clusters:3: it has the id 'x'"),
        (b"0\n1\n4\n1\n", r"clusters:3: it has the id '4'; expected a number from 0 to 3"),
        (b"0\n\n1\n1\n", r"clusters:2: it has 0 clusters; expected one a label"),
        (b"0\n0,1\n1\n1\n", r"clusters:2: it has 2 clusters"),
        (b"0\n1\n0\n", "clusters: it has 3 lines; expected one for each of the 4 labels"),
        (b"0\n1\n0\n1\n1\n", "clusters:5: there is a line more than the 4 labels"),
        (b"0\n2\n0\n2\n", "clusters: cluster 1 of 0 to 2 has no label"),
        (b"", "it has 0 lines"),
    ],
)
def test_a_file_that_says_no_clusters_is_refused_by_line(content, said, tmp_path):
    (tmp_path / "clusters").write_bytes(content)
    with pytest.raises(Malformed, match=said):
        read_clusters(tmp_path / "clusters", 4)


def test_a_matrix_has_one_entry_a_label(tmp_path):
    write_npz(tmp_path / "two.npz", Csr.from_lists([[0], [0, 1], [1]], 2))
    with pytest.raises(Malformed, match=r"two.npz: label 1 is in 2 clusters"):
        read_clusters(tmp_path / "two.npz", 3)
    with pytest.raises(Malformed, match="expected a row for each of the 4 labels"):
        read_clusters(tmp_path / "two.npz", 4)
    with pytest.raises(FileNotFoundError):
        read_clusters(tmp_path / "none.npz", 3)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([0.0, 1.0], TypeError, "integers"),
        ([True, False], TypeError, "integers"),
        ([[0, 1]], TypeError, "integers"),
        ([0, 0, 0], ValueError, "has 3 entries; expected one for each of the 2 labels"),
        ([-1, 0], ValueError, "label 0 is in the cluster -1"),
        ([0, 2], ValueError, "label 1 is in the cluster 2; expected 0 to 1"),
        ([1, 1], ValueError, "cluster 0 of 0 to 1 has no label"),
    ],
)
def test_what_are_no_clusters_is_named(given, error, said):
    with pytest.raises(error, match=said):
        as_clusters(given, 2)
