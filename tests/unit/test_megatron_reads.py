"""An untouched Megatron reads what we write: IndexedDataset and GPTDataset, automata and text."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("megatron.core")

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_nca.config.law import PRESETS
from megatron_nca.data import tokenizer
from megatron_nca.data.encoders import SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.indexed import IndexedReader, IndexedWriter
from megatron_nca.data.preprocess import preprocess
from megatron_nca.data.stretches import recognise
from megatron_nca.data.trajectories import Trajectory

LAW = PRESETS["released"]


@pytest.fixture(scope="module")
def automata(tmp_path_factory):
    """Documents of the released law's shape with random patches."""
    prefix = tmp_path_factory.mktemp("automata") / "nca"
    frames = np.random.default_rng(0).integers(0, LAW.start_token, (40, LAW.num_frames, LAW.frame_tokens))
    frames[:, :, 0], frames[:, :, -1] = LAW.start_token, LAW.end_token
    with IndexedWriter(prefix, LAW.num_tokens, Trajectory.of_law(LAW)) as writer:
        writer.add_documents(frames.reshape(40, -1))
        writer.finish({"kind": "nca", "vocab_size": LAW.vocab_size, "origin": {}})
    return prefix


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    texts = [f"def f{i}(x):\n\treturn x  + {i}\n" * (i % 7 + 1) for i in range(200)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer.save(tokenizer.train(folder / "a.jsonl", 300)[0], folder / "tok")
    chosen = TokenizerFiles(type=SENTENCEPIECE, model=folder / "tok.model")
    preprocess(Preprocessing(inputs=recognise([folder / "a.jsonl"]), tokenizer=chosen), folder / "out")
    return folder / "out_text_document"


def check_indexed(prefix):
    ours, theirs = IndexedReader(prefix), IndexedDataset(str(prefix))
    assert len(theirs) == len(ours)
    assert all(np.array_equal(theirs[i], ours[i]) for i in range(len(ours)))
    assert np.array_equal(theirs.sequence_lengths, ours.lengths)
    assert np.array_equal(theirs.document_indices, ours.document_bounds)


def build_gpt_dataset(prefix, length, vocab_size, num_samples, cache):
    foreign = SimpleNamespace(vocab_size=vocab_size, eod=1, unique_identifiers={"class": "none"})
    config = GPTDatasetConfig(random_seed=1, sequence_length=length, blend=([str(prefix)], None), split="1,0,0",
                              path_to_cache=str(cache), tokenizer=foreign, reset_position_ids=False,
                              reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False)
    return BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config).build()[0]


def test_indexed_dataset_reads_both(automata, text):
    check_indexed(automata)
    check_indexed(text)


def test_gpt_dataset_reads_automata(automata, tmp_path):
    dataset = build_gpt_dataset(automata, LAW.sequence_length, LAW.vocab_size, 30, tmp_path)
    check_samples(dataset, IndexedReader(automata), LAW.sequence_length, 30)


def test_gpt_dataset_reads_text(text, tmp_path):
    dataset = build_gpt_dataset(text, 64, 300, 100, tmp_path)
    check_samples(dataset, IndexedReader(text), 64, 100)


def check_samples(dataset, reader, length, least):
    """Each sample is a stretch of the documents in Megatron's own order, its labels the tokens after it."""
    assert len(dataset) >= least
    stream = np.concatenate([reader[i] for i in dataset.document_index])
    for number in range(least):
        sample = dataset[number]
        start = dataset.shuffle_index[number] * length
        assert np.array_equal(sample["tokens"].numpy(), stream[start : start + length])
        assert np.array_equal(sample["labels"].numpy(), stream[start + 1 : start + length + 1])
