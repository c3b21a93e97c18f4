"""The controls as sources: functions of (seed, index) alone, and what each of them keeps."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from megatron_nca.config.controls import DyckLaw
from megatron_nca.config.law import NcaLaw
from megatron_nca.data.indexed import IndexedReader, IndexedWriter
from megatron_nca.data.manifest import Manifest, unigram_entropy_nats
from megatron_nca.data.verify import verify
from megatron_nca.errors import ConfigError, DataError
from megatron_nca.sources import counter
from megatron_nca.sources.corpus_copy import CorpusCopySource
from megatron_nca.sources.dyck import DyckSource
from megatron_nca.sources.iid import IidSource
from megatron_nca.sources.nca import NcaSource
from megatron_nca.sources.shuffled import ShuffledSource
from megatron_nca.sources.writing import existing, generate

LAW = NcaLaw(num_states=2, height=8, width=8, sequence_length=64, band=(0.05, 1.0), allocated_vocab_size=100)


@pytest.fixture(scope="module")
def automata(tmp_path_factory) -> Path:
    prefix = tmp_path_factory.mktemp("base") / "nca"
    generate(NcaSource(LAW, 60, 4), prefix)
    return prefix


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A stream of 5,000 tokens, each its own position."""
    prefix = tmp_path_factory.mktemp("text") / "text"
    with IndexedWriter(prefix, 6000) as writer:
        for first in range(0, 5000, 250):
            writer.add_document(np.arange(first, first + 250))
        writer.finish({"kind": "corpus", "vocab_size": 6000, "origin": {"tokenizer": {"sha256": "0"}}})
    return prefix


def sources(automata: Path, text: Path, seed: int = 9) -> list:
    return [
        ShuffledSource(automata, None, seed),
        ShuffledSource(automata, 20, seed, "patches"),
        IidSource(automata, 30, seed),
        IidSource(automata, 30, seed, "uniform"),
        DyckSource(DyckLaw(symbols=5), 30, seed, 64),
        DyckSource(DyckLaw(symbols=5), 30, seed, 64, shuffle=True),
        CorpusCopySource(text, 30, seed, 64),
    ]


def test_a_sequence_depends_on_nothing_but_seed_and_index(automata, text):
    for source in sources(automata, text):
        index = np.arange(source.num_sequences)
        whole = source.documents(index)
        assert whole.shape == (source.num_sequences, source.trajectory.document_tokens)
        backwards = np.concatenate([source.documents(index[i : i + 1]) for i in index[::-1]])
        np.testing.assert_array_equal(backwards[::-1], whole, err_msg=source.kind)
    for one, other in zip(sources(automata, text, 1), sources(automata, text, 2), strict=True):
        assert not np.array_equal(one.documents(np.arange(5)), other.documents(np.arange(5)))


def test_blocks_of_any_size_make_the_same_sequences(automata, text, monkeypatch):
    wholes = [np.concatenate(list(source.blocks())) for source in sources(automata, text)]
    monkeypatch.setattr(counter, "BLOCK_TOKENS", 200)
    for source, whole in zip(sources(automata, text), wholes, strict=True):
        np.testing.assert_array_equal(np.concatenate(list(source.blocks())), whole)


FROZEN = ["56c7", "426a", "c10f", "f154", "1f1f", "00cf", "1937"]
"""First digits of the sha256 of each source's documents. Where one changes, law_version must be raised."""


def test_bytes_are_frozen(automata, text):
    found = []
    for source in sources(automata, text):
        documents = source.documents(np.arange(source.num_sequences)).astype("<u2")
        found.append(hashlib.sha256(documents.tobytes()).hexdigest()[:4])
    assert found == FROZEN


def test_every_source_makes_a_sound_dataset(automata, text, tmp_path):
    for number, source in enumerate(sources(automata, text)):
        manifest = generate(source, tmp_path / str(number))
        assert "agree" in verify(tmp_path / str(number))
        assert (manifest.kind, manifest.documents) == (source.kind, source.num_sequences)
        assert manifest.origin["generator"] == f"megatron_nca.{source.kind}"
        assert existing(tmp_path / str(number), source.identity()) == manifest
        with pytest.raises(DataError, match=r"seed = 9 \(asked: 8\)"):
            existing(tmp_path / str(number), {**source.identity(), "seed": 8})


def test_shuffled_keeps_each_sequences_tokens(automata):
    base = np.stack(list(IndexedReader(automata)))
    read = LAW.sequence_length + 1
    for permute in ("tokens", "patches"):
        source = ShuffledSource(automata, None, 9, permute)
        documents = source.documents(np.arange(60))
        np.testing.assert_array_equal(np.sort(documents[:, :read]), np.sort(base[:, :read]))
        np.testing.assert_array_equal(documents[:, read:], base[:, read:])
        assert not np.array_equal(documents, base)
        manifest = Manifest.load(automata)
        assert (source.trajectory, source.vocab_size) == (manifest.trajectory, 100)
        assert source.origin()["base_origin"] == manifest.origin
        assert source.origin()["base"]["bin_sha256"] == manifest.files["bin"].sha256
    delimiters = np.arange(72) % 18 % 17 == 0
    np.testing.assert_array_equal(documents[:, delimiters], base[:, delimiters])
    assert not (ShuffledSource(automata, None, 9).documents(np.arange(60))[:, :read][:, ::18] == 16).all()


def test_every_place_is_as_likely(automata):
    """Where the first token of a sequence goes, over many seeds: uniform over the 65 places."""
    places = np.argsort(counter.bits(3, counter.SHUFFLED, np.arange(6500), 65), axis=1)
    counts = np.bincount(np.argmax(places == 0, axis=1), minlength=65)
    assert ((counts - 100) ** 2 / 100).sum() < 110  # chi-square, 64 degrees of freedom: p < 0.0003


def test_iid_has_the_frequencies_of_the_bases_scored_tokens(automata):
    source = IidSource(automata, 2000, 9)
    trajectory, documents = source.trajectory, source.documents(np.arange(2000))
    base = trajectory.scored_targets(np.stack(list(IndexedReader(automata))))
    wanted = np.bincount(base.reshape(-1), minlength=18) / base.size
    np.testing.assert_array_equal(source.counts, np.bincount(base.reshape(-1), minlength=18))
    found = np.bincount(documents.reshape(-1), minlength=18) / documents.size
    np.testing.assert_allclose(found, wanted, atol=5 * np.sqrt(0.25 / documents.size))
    assert not found[wanted == 0].any()
    pairs = np.bincount((documents[:, :-1] * 18 + documents[:, 1:]).reshape(-1), minlength=324)
    assert unigram_entropy_nats(pairs) == pytest.approx(2 * unigram_entropy_nats(wanted), abs=0.01)
    uniform = IidSource(automata, 2000, 9, "uniform").documents(np.arange(2000))
    np.testing.assert_allclose(np.bincount(uniform.reshape(-1), minlength=18) / uniform.size, 1 / 18, atol=0.004)


def walk(tokens: np.ndarray, symbols: int, nested: bool) -> list[int]:
    """Depth after each token; asserts that only open brackets close, the last one first if `nested`."""
    stack: list[int] = []
    depths = []
    for token in tokens.tolist():
        if token < symbols:
            stack.append(token)
        elif nested:
            assert stack.pop() == token - symbols
        else:
            stack.remove(token - symbols)
        depths.append(len(stack))
    return depths


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("length", [64, 65])
def test_brackets_are_well_formed(shuffle, length):
    """Of an odd number of tokens all but the last are balanced, and the last opens."""
    for law in (DyckLaw(), DyckLaw(symbols=3, max_depth=2), DyckLaw(symbols=1, max_depth=1, p_open=0.9)):
        source = DyckSource(law, 40, 2, length, shuffle=shuffle)
        for document in source.documents(np.arange(40)):
            depths = walk(document, law.symbols, nested=not shuffle)
            assert max(depths) <= law.max_depth
            assert depths[-1] == len(document) % 2 and depths[len(document) - 1 - len(document) % 2] == 0


def test_shuffled_brackets_cross():
    source = DyckSource(DyckLaw(symbols=8), 20, 2, 200, shuffle=True)
    with pytest.raises(AssertionError):
        walk(source.documents(np.arange(1))[0], 8, nested=True)


@pytest.mark.parametrize("shuffle", [False, True])
def test_all_kinds_occur_and_depths_as_the_papers(shuffle):
    """The released code's k-shuffle Dyck never draws the last of its kinds."""
    source = DyckSource(DyckLaw(end="cut"), 100, 0, 1024, shuffle=shuffle)
    assert (source.num_tokens, source.vocab_size, source.trajectory.num_scored) == (128, 128, 1024)
    documents = source.documents(np.arange(100))
    counts = np.bincount(documents.reshape(-1), minlength=128)
    assert counts[:64].min() > 0.8 * counts[:64].mean() and counts[64:].min() > 0.8 * counts[64:].mean()
    depths = np.cumsum(np.where(documents < 64, 1, -1), axis=1)
    assert depths.min() == 0 and depths.max() == 16
    inner = (depths[:, :-1] > 0) & (depths[:, :-1] < 16)
    assert (documents[:, 1:] < 64)[inner].mean() == pytest.approx(0.5, abs=0.01)
    assert (depths[:, -1] > 0).mean() > 0.5


def test_a_copy_holds_windows_of_its_corpus_none_twice(text):
    source = CorpusCopySource(text, 78, 5, 64)
    documents = source.documents(np.arange(78))
    assert sorted(documents[:, 0]) == list(range(0, 78 * 64, 64))
    np.testing.assert_array_equal(documents, documents[:, :1] + np.arange(65))
    assert (source.num_tokens, source.vocab_size, source.trajectory.num_scored) == (6000, 6000, 64)
    with pytest.raises(DataError, match=r"sequences = 79: .* holds 78 windows of 64 tokens.*Cure"):
        CorpusCopySource(text, 79, 5, 64)


def test_a_copy_can_be_shuffled_and_a_stream_cannot(text, tmp_path):
    generate(CorpusCopySource(text, 10, 5, 64), tmp_path / "copy")
    documents = ShuffledSource(tmp_path / "copy", None, 1).documents(np.arange(10))
    np.testing.assert_array_equal(np.sort(documents), np.stack(list(IndexedReader(tmp_path / "copy"))))
    with pytest.raises(DataError, match=r"permute = 'patches': .* has no frames"):
        ShuffledSource(tmp_path / "copy", None, 1, "patches")
    for kind in (ShuffledSource, IidSource):
        with pytest.raises(DataError, match=r"is a stream of corpus.*generate --source corpus_copy"):
            kind(text, None, 1)


def test_a_damaged_base_is_not_shuffled(automata, tmp_path):
    for ending in ("bin", "idx", "json"):
        content = bytearray(Path(f"{automata}.{ending}").read_bytes())
        content[100] ^= ending == "bin"
        (tmp_path / f"nca.{ending}").write_bytes(content)
    with pytest.raises(DataError, match="make the dataset again"):
        generate(ShuffledSource(tmp_path / "nca", None, 1), tmp_path / "shuffled")
    assert not (tmp_path / "shuffled.bin").exists()


@pytest.mark.parametrize("kind", [ShuffledSource, IidSource])
def test_as_many_sequences_as_the_base_unless_said(automata, kind):
    assert kind(automata, None, 1).num_sequences == 60 and kind(automata, 7, 1).num_sequences == 7
    with pytest.raises(ConfigError, match="sequences = 0"):
        kind(automata, 0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"symbols": 0}, "dyck.symbols = 0"),
        ({"max_depth": 0}, "dyck.max_depth = 0"),
        ({"p_open": 1.0}, "dyck.p_open = 1.0"),
    ],
)
def test_impossible_brackets(settings, message):
    with pytest.raises(ConfigError, match=message):
        DyckLaw(**settings)
