"""Documents of corpora as text: each kind of tokenizer, with a manifest and without one."""

import json

import numpy as np
import pytest

from megatron_nca.data import tokenizer
from megatron_nca.data.encoders import GPT2_BPE, HUGGING_FACE, SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.manifest import part
from megatron_nca.data.preprocess import preprocess
from megatron_nca.data.stretches import recognise
from megatron_nca.errors import DataError
from megatron_nca.look.documents import document

TEXTS = [f"def f{i}(x):\n\treturn x  + {i}  # \u00e9 \U0001f600\n" * (i % 5 + 1) for i in range(40)]


@pytest.fixture(scope="module", params=[SENTENCEPIECE, HUGGING_FACE, GPT2_BPE])
def corpus(request, tmp_path_factory):
    """(prefix, its tokenizer, its end of document as text)"""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    end = "<|endoftext|>"
    if request.param == SENTENCEPIECE:
        tokenizer.save(tokenizer.train(folder / "a.jsonl", 300)[0], folder / "tok")
        chosen, end = TokenizerFiles(type=SENTENCEPIECE, model=folder / "tok.model"), ""
    else:
        tokenizers = pytest.importorskip("tokenizers")
        pytest.importorskip("regex")
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=[end], initial_alphabet=letters, show_progress=False))
        bpe.model.save(str(folder))
        bpe.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
        chosen = TokenizerFiles(type=HUGGING_FACE, model=folder) if request.param == HUGGING_FACE else TokenizerFiles(
            type=GPT2_BPE, vocab_file=folder / "vocab.json", merge_file=folder / "merges.txt")
    preprocess(Preprocessing(inputs=recognise([folder / "a.jsonl"]), tokenizer=chosen), folder / "out")
    return folder / "out_text_document", chosen, end


def test_documents_come_back_as_they_were(corpus, tmp_path):
    prefix, chosen, end = corpus
    for number in (0, 7, 39):
        assert document(prefix, number, chosen) == (TEXTS[number] + end, None)
    for ending in ("bin", "idx"):  # as another tool leaves them
        part(tmp_path / "foreign", ending).write_bytes(part(prefix, ending).read_bytes())
    text, note = document(tmp_path / "foreign", 7, chosen)
    assert text == TEXTS[7] + end and "has no manifest" in note
    assert document(prefix, 7, None)[0].split()[0].isdigit()


def test_numbers_and_tokenizers_that_do_not_fit_are_refused(corpus, tmp_path):
    prefix, chosen, _ = corpus
    with pytest.raises(DataError, match=r"--document = 40: .* holds documents 0..39"):
        document(prefix, 40, chosen)
    with IndexedWriter(tmp_path / "other", 9000) as writer:
        writer.add_document(np.arange(8000, 8009))
        writer.finish({"kind": "corpus", "vocab_size": 9000, "origin": {"tokenizer": {"sha256": "another"}}})
    with pytest.raises(DataError, match="was made with another tokenizer"):
        document(tmp_path / "other", 0, chosen)
    part(tmp_path / "other", "json").unlink()
    with pytest.raises(DataError, match="holds the id 8008, and it has "):
        document(tmp_path / "other", 0, chosen)
