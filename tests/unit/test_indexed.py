"""data/indexed.py: the bytes are Megatron's, bad tokens are refused, bad files are named."""

import gc
import pickle
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_nca.data.indexed import IndexedReader, IndexedWriter, optimal_dtype
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import DataError

FIELDS = {"kind": "corpus", "vocab_size": 100_000, "origin": {}}


def write(prefix, documents, num_tokens=100_000):
    with IndexedWriter(prefix, num_tokens) as writer:
        for document in documents:
            writer.add_document(np.asarray(document))
        return writer.finish(FIELDS)


@pytest.mark.parametrize("num_tokens", [10_002, 65_499, 65_500, 100_000])
def test_bytes_are_those_of_megatrons_builder(tmp_path, num_tokens):
    torch = pytest.importorskip("torch")
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    random = np.random.default_rng(0)
    rows = random.integers(0, num_tokens, (50, 38))
    single = [random.integers(0, num_tokens, length) for length in (1, 7, 1000)]
    with IndexedWriter(tmp_path / "ours", num_tokens) as writer:
        writer.add_documents(rows[:20])
        writer.add_documents(rows[20:].astype(np.uint32))
        for document in single:
            writer.add_document(document)
        writer.finish(FIELDS)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(num_tokens))
    for document in [*rows, *single]:
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert optimal_dtype(num_tokens) == np.dtype(DType.optimal_dtype(num_tokens))
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()


def test_reads_back_what_was_written(tmp_path):
    documents = [np.arange(5), np.array([99_999]), np.arange(100, 300)]
    manifest = write(tmp_path / "a.b", documents)  # a prefix may hold a dot
    reader = IndexedReader(tmp_path / "a.b")
    assert (len(reader), reader.tokens, reader.dtype) == (3, 206, np.int32)
    assert all(np.array_equal(reader[i], document) for i, document in enumerate(documents))
    assert np.array_equal(reader[-1], documents[-1]) and reader.lengths.tolist() == [5, 1, 200]
    assert (manifest.documents, manifest.tokens, manifest.dtype) == (3, 206, "int32")
    assert Manifest.load(tmp_path / "a.b") == manifest
    manifest.verify(tmp_path / "a.b")
    for index in (3, -4):
        with pytest.raises(IndexError):
            reader[index]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.bin", "a.b.idx", "a.b.json"]


def test_an_array_outlives_its_reader_and_cannot_change_the_file(tmp_path):
    write(tmp_path / "x", [np.arange(100_000)])
    tokens = IndexedReader(tmp_path / "x")[0]
    gc.collect()
    assert tokens.sum() == 99_999 * 50_000  # Megatron's reader ends with a segmentation fault here
    with pytest.raises(ValueError):
        tokens[0] = 1


def test_a_reader_travels_to_a_worker_process(tmp_path):
    write(tmp_path / "x", [[1, 2, 3]])
    assert pickle.loads(pickle.dumps(IndexedReader(tmp_path / "x")))[0].tolist() == [1, 2, 3]


def test_index_is_right_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_nca.data.indexed.CHUNK", 7)
    documents = [np.full(i % 5 + 1, i) for i in range(50)]
    write(tmp_path / "x", documents)
    reader = IndexedReader(tmp_path / "x")
    assert all(np.array_equal(reader[i], document) for i, document in enumerate(documents))
    assert reader.document_bounds.tolist() == list(range(51))


@pytest.mark.parametrize(("tokens", "what"), [
    ([[1, 2], [3, 10]], "document 1: token 10 is outside 0..9"),
    ([[1, 2], [-1, 3]], "document 1: token -1"),
    (np.array([[1, 70_000]], dtype=np.uint64), "token 70000"),
    ([[1.0, 2.0]], "float64"),
    ([1, 2], "shape"),
    (np.zeros((2, 0), dtype=int), "has 0 tokens"),
])
def test_bad_tokens_are_refused_at_write_time(tmp_path, tokens, what):
    with pytest.raises(DataError, match=what), IndexedWriter(tmp_path / "x", 10) as writer:
        writer.add_documents(np.asarray(tokens))
    assert list(tmp_path.iterdir()) == []


def test_a_refused_block_leaves_no_trace_in_what_follows(tmp_path):
    with IndexedWriter(tmp_path / "x", 10) as writer:
        writer.add_documents(np.array([[1, 2]]))
        with pytest.raises(DataError):
            writer.add_documents(np.array([[3, 4], [5, 10]]))
        writer.add_document(np.array([6]))
        writer.finish({**FIELDS, "vocab_size": 10})
    reader = IndexedReader(tmp_path / "x")
    assert [reader[i].tolist() for i in range(len(reader))] == [[1, 2], [6]]


def test_entropy_is_over_the_scored_targets(tmp_path):
    layout = Trajectory(sequence_length=4, document_tokens=6, frame_tokens=2, first_scored_token=2)
    with IndexedWriter(tmp_path / "x", 10, layout) as writer:
        writer.add_documents(np.array([[9, 9, 0, 1, 0, 9], [9, 9, 1, 0, 1, 9]]))  # scored: 0 1 0, 1 0 1
        with pytest.raises(DataError, match="document_tokens"):
            writer.add_document(np.arange(5))
        manifest = writer.finish({"kind": "nca", "vocab_size": 10, "origin": {}})
    assert manifest.unigram_entropy_nats == pytest.approx(np.log(2), abs=1e-15)
    assert Manifest.load(tmp_path / "x").trajectory == layout


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(("damage", "what"), [
    (lambda d: truncate(d / "x.bin", 10), r"x.bin: has 10 bytes, but its index says 6 tokens"),
    (lambda d: (d / "x.bin").write_bytes((d / "x.bin").read_bytes() + b"\0"), "x.bin: has 25 bytes"),
    (lambda d: (d / "x.bin").unlink(), "x.bin: is missing"),
    (lambda d: (d / "x.idx").unlink(), "x.idx: is missing"),
    (lambda d: truncate(d / "x.idx", 20), "fewer than the header"),
    (lambda d: truncate(d / "x.idx", 50), "its header names take"),
    (lambda d: (d / "x.idx").write_bytes(b"PK\3\4" * 30), "MMIDIDX"),
    (lambda d: patch(d / "x.idx", 9, b"\2"), "version 2"),
    (lambda d: patch(d / "x.idx", 17, b"\7"), "dtype code 7"),
    (lambda d: patch(d / "x.idx", 34, b"\4"), r"sequence 1 has an offset .*\(byte 50\)"),
    (lambda d: patch(d / "x.idx", 34, b"\xff\xff\xff\xff"), "negative length"),
    (lambda d: patch(d / "x.idx", 66, b"\3"), "document bounds"),
    (lambda d: patch(d / "x.idx", 18, b"\0\0\0\0\0\0\0\x80"), "its header names take"),
])
def test_a_damaged_pair_is_refused_with_file_and_place(tmp_path, damage, what):
    write(tmp_path / "x", [[1, 2, 3], [4, 5, 6]])
    damage(tmp_path)
    with pytest.raises(DataError, match=what):
        IndexedReader(tmp_path / "x")


def patch(path, at, new):
    content = bytearray(path.read_bytes())
    content[at : at + len(new)] = new
    path.write_bytes(content)


@pytest.mark.parametrize("num_tokens", [100, 70_000])
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_of_an_index_is_refused_or_harmless(tmp_path, num_tokens, data):
    prefix = tmp_path / "x"
    documents = [[1, 2, 3], [4], [5, 6, 7, 8]]
    if not prefix.with_suffix(".json").exists():
        write(prefix, documents, num_tokens)
        (tmp_path / "good").write_bytes(part(prefix, "idx").read_bytes())
    content = bytearray((tmp_path / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["set", "cut", "grow"]))
        if kind == "set" and content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[data.draw(st.integers(0, len(content))) :]
        elif kind == "grow":
            content += data.draw(st.binary(min_size=1, max_size=24))
    part(prefix, "idx").write_bytes(content)
    try:
        reader = IndexedReader(prefix)
    except DataError:
        return
    assert [reader[i].tolist() for i in range(len(reader))] == documents


def test_opening_does_not_read_the_tokens(tmp_path):
    """A sparse file of 32 GiB opens at once and takes no memory."""
    documents, length = 4096, 2**21
    with open(tmp_path / "x.bin", "wb") as file:
        file.truncate(documents * length * 4)
    counts = np.array([documents, documents + 1], "<u8").tobytes()
    header = b"MMIDIDX\0\0" + np.array([1], "<u8").tobytes() + b"\4" + counts
    (tmp_path / "x.idx").write_bytes(
        header + np.full(documents, length, "<i4").tobytes()
        + (np.arange(documents, dtype="<i8") * length * 4).tobytes() + np.arange(documents + 1, dtype="<i8").tobytes())
    before, start = resident_bytes(), time.perf_counter()
    reader = IndexedReader(tmp_path / "x")
    assert reader[documents - 1][-5:].tolist() == [0] * 5
    assert time.perf_counter() - start < 1
    assert resident_bytes() - before < 64 * 2**20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
