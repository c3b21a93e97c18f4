"""data/encoders.py: what is fast gives the tokens of what is slow."""

import dataclasses
import functools
import json
import random
import zlib

import numpy as np
import pytest
import regex
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nca import ops
from megatron_nca.data import encoders, encoding, stretches, tokenizer
from megatron_nca.data.encoders import GPT2_BPE, GPT2_END, HUGGING_FACE, SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.preprocess import preprocess
from megatron_nca.errors import DataError

TEXT = ("def f(x):\n\treturn x  +  1   # it's  the\u00a0same \u4e2d\u6587 na\u00efve caf\u0065\u0301 1234 __init__"
        "\r\n\n\n")
ALPHABET = " \u2581\n\t\r\u00a0ab'sT12_\u00e9\u4e2d\U0001f600\u0301.<|endoftext|>"
TEXTS = st.one_of(st.text(ALPHABET, max_size=80), st.text(max_size=40))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    chance = random.Random(0)
    words = TEXT.split(" ")
    lines = [" ".join(chance.choice(words) + " " * chance.randrange(4) for _ in range(60)) for _ in range(400)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    tokenizer.save(tokenizer.train(folder / "a.jsonl", 380)[0], folder / "tok")
    return folder / "tok.model"


@pytest.fixture(scope="module")
def remembered(model):
    return TokenizerFiles(type=SENTENCEPIECE, model=model).load()


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_remembered_words_give_sentencepieces_own_tokens(model, remembered, texts):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert remembered.encode(texts).tolist() == processor.encode(texts)


def test_a_models_own_prefix_is_put_before_each_text(model, tmp_path):
    """As models of the Llama 2 family have it."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    proto.normalizer_spec.add_dummy_prefix = True
    (tmp_path / "prefixed.model").write_bytes(proto.SerializeToString())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "prefixed.model"))
    by_words = encoders._by_words(tmp_path / "prefixed.model")

    @settings(max_examples=300, deadline=None)
    @given(texts=st.lists(TEXTS, max_size=5))
    def agree(texts):
        assert by_words(texts).tolist() == processor.encode(texts)

    agree()


def trained(folder, model, **options):
    """By sentencepiece's own defaults, but for `options`, from the text of `model`."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(model.with_name("a.jsonl")), model_prefix=str(folder / "m"), minloglevel=2, **options)
    return folder / "m.model"


OWN_RULES = [  # models whose normaliser, unknown characters or white space are not those of train_tokenizer.py
    {"model_type": "unigram", "vocab_size": 50}, {"model_type": "bpe", "vocab_size": 60},
    {"model_type": "bpe", "vocab_size": 310, "byte_fallback": True},
    {"model_type": "bpe", "vocab_size": 60, "normalization_rule_name": "nmt_nfkc_cf", "add_dummy_prefix": False},
    {"model_type": "bpe", "vocab_size": 60, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    {"model_type": "bpe", "vocab_size": 60, "character_coverage": 0.98, "self_test_sample_size": 5},
    {"model_type": "bpe", "vocab_size": 70,
     "user_defined_symbols": ["<|endoftext|>", "1_", "\u2581\u2581", "\u2581b", "T"]},
    {"model_type": "bpe", "vocab_size": 320, "byte_fallback": True, "normalization_rule_name": "identity",
     "remove_extra_whitespaces": False, "user_defined_symbols": ["\n\n", "\t", "a.", "\u2581\u2581\u2581"]},
]


@pytest.mark.parametrize("options", OWN_RULES)
def test_models_of_other_rules_have_sentencepieces_own_tokens(model, tmp_path, options):
    path = trained(tmp_path, model, **options)
    encode = TokenizerFiles(type=SENTENCEPIECE, model=path).load().encode
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert (encoders._by_words(path) is None) == (options["model_type"] == "unigram")
    # unknown ones side by side within a word, of two kinds, of two words, of two texts; texts without tokens
    unknown = ["\u4e2d\u4e2d\u0661\u4e2d", "\u4e2d \u4e2d", "\u4e2d", "\u4e2d", "a\u4e2d\u0661a"]
    for texts in (["  ", TEXT, " "], unknown):
        assert encode(texts).tolist() == processor.encode(texts)

    @settings(max_examples=200, deadline=None)
    @given(texts=st.lists(TEXTS, max_size=5))
    def agree(texts):
        assert encode(texts).tolist() == processor.encode(texts)

    agree()


def test_words_are_remembered_only_where_that_is_exact(model, tmp_path):
    exact = {"model_type": "bpe", "vocab_size": 310, "byte_fallback": True}
    assert encoders._by_words(trained(tmp_path, model, **exact))
    for other in ({"model_type": "unigram"}, {"user_defined_symbols": ["a b"]}, {"user_defined_symbols": ["a\u2581b"]},
                  {"treat_whitespace_as_suffix": True}):
        assert not encoders._by_words(trained(tmp_path, model, **{**exact, **other})), other


def test_a_text_is_cut_where_no_piece_crosses():
    def words(pieces, text):
        return ops.WordMemory(encoders._kinds_of(pieces), gpt2=False, most_words=9, longest=9).cut([text])

    assert encoders._kinds_of(["a\u2581b"]) is None
    assert words(["\u2581\u2581a", "+"], "  a1 +\n_b") == ["  a", "1", " +", "\n", "_", "b"]
    assert words(["a+", "+\n"], "  a1 +\nb") == ["  a", "1", " +\nb"]


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4), longest=st.sampled_from([1, 64]))
def test_gpt2s_words_are_those_of_its_pattern(texts, longest):
    pattern, memory = regex.compile(encoders.GPT2_WORDS), gpt2_memory(longest)
    for _ in range(3):  # beyond 20 words all are forgotten, and learned again
        new = memory.cut(texts)
        tokens, lengths = memory.tokens([[numbered(word)] for word in new])
        words = [pattern.findall(text) for text in texts]
        assert lengths.tolist() == list(map(len, words))
        assert tokens.tolist() == [numbered(word) for text in words for word in text]


@functools.cache
def gpt2_memory(longest):
    kinds = encoders._table(regex.compile(encoders.GPT2_KINDS), [1, 2, 3])
    return ops.WordMemory(kinds, gpt2=True, most_words=20, longest=longest)


def numbered(word):
    return zlib.crc32(word.encode()) >> 1


def test_tokens_of_every_new_word_are_needed():
    memory = gpt2_memory.__wrapped__(64)  # which no other test has filled
    assert len(memory.cut(["new words here"])) == 3
    with pytest.raises(ValueError, match="every new word"):
        memory.tokens([[1]])
    assert len(memory.cut(["new words"])) == 3, "what was not learned is asked for again"
    assert memory.tokens([[5], [6], [7]])[0].tolist() == [5, 6]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A byte-level BPE trained here, in GPT-2's two files, and as a fast tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("gpt2")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT * 20], vocab_size=400, min_frequency=1, special_tokens=[GPT2_END])
    trained.save_model(str(folder))
    trained.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": GPT2_END}))
    return folder


def test_gpt2_and_fast_tokenizer_agree_with_transformers(gpt2):
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer(str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt"))
    ours = TokenizerFiles(type=GPT2_BPE, vocab_file=gpt2 / "vocab.json", merge_file=gpt2 / "merges.txt").load()
    fast = TokenizerFiles(type=HUGGING_FACE, model=gpt2).load()
    assert ours.eod == fast.eod == theirs.eos_token_id == 0 and ours.vocab_size == fast.vocab_size == len(theirs)

    @settings(max_examples=300, deadline=None)
    @given(texts=st.lists(TEXTS, max_size=4))
    def agree(texts):
        expected = [theirs.convert_tokens_to_ids(theirs._tokenize(text)) for text in texts]
        assert ours.encode(texts).tolist() == expected
        assert fast.encode(texts).tolist() == expected

    agree()


def test_no_text_gives_an_end_of_document(gpt2, model, remembered):
    files = [TokenizerFiles(type=GPT2_BPE, vocab_file=gpt2 / "vocab.json", merge_file=gpt2 / "merges.txt"),
             TokenizerFiles(type=HUGGING_FACE, model=gpt2)]
    for encoder in (*(each.load() for each in files), remembered):
        [ids] = encoder.encode([f"a {GPT2_END}</s>"]).tolist()
        assert encoder.eod not in ids and len(ids) > 3


def test_wrong_files_are_one_message(gpt2, model, tmp_path):
    for values, what in [({"type": SENTENCEPIECE}, "needs it"),
                         ({"type": SENTENCEPIECE, "model": model, "merge_file": model}, "has no use for it"),
                         ({"type": GPT2_BPE, "vocab_file": model, "merge_file": model}, "are no vocabulary and merges"),
                         ({"type": HUGGING_FACE, "model": tmp_path}, "holds no tokenizer.json"),
                         ({"type": HUGGING_FACE, "model": model}, "is no fast tokenizer"),
                         ({"type": SENTENCEPIECE, "model": gpt2 / "vocab.json"}, "is no sentencepiece model")]:
        with pytest.raises(DataError, match=what):
            TokenizerFiles(**values).load()


def test_ids_beyond_sixteen_bits_are_whole_and_beyond_the_vocabulary_refused(gpt2, tmp_path):
    """A token far behind the others, as padded vocabularies have it; and a tokenizer that gives what it should not."""
    described = json.loads((gpt2 / "tokenizer.json").read_text())
    letter = described["model"]["vocab"].pop("x")
    described["model"]["vocab"]["x"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (tmp_path / "a.jsonl").write_text('{"text": "xxx"}\n')
    chosen = Preprocessing(inputs=stretches.recognise([tmp_path / "a.jsonl"]), append_eod=False,
                           tokenizer=TokenizerFiles(type=HUGGING_FACE, model=tmp_path))
    preprocess(chosen, tmp_path / "out")
    reader = IndexedReader(tmp_path / "out_text_document")
    assert reader[0].tolist().count(70_000) == 3 and letter not in reader[0] and reader[0].dtype == np.int32
    small = dataclasses.replace(chosen.tokenizer.load(), vocab_size=400)
    [stretch] = stretches.cut(chosen.inputs, 1000)
    with pytest.raises(DataError, match=r"tokenizer\.json: gave the id 70000, though it has 400 ids"):
        encoding.encode_stretch(chosen, small, stretch, tmp_path / "part")
    assert not (tmp_path / "part").exists()
