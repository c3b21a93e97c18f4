"""data/tokenizer.py: what is encoded and decoded comes back as it was, whatever it was."""

import io
import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nca.data import tokenizer
from megatron_nca.errors import DataError

SOURCE = [(f'class Thing{i}:\n    """Text  with\ttabs, é and 中."""\n\n    def method(self, x={i}):\n'
           f"        if x > {i * 7}:\r\n\t\t\treturn self.value  \n\n") * 3 for i in range(40)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in SOURCE), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(corpus):
    return tokenizer.train(corpus, 330)[0]


@pytest.fixture(scope="module")
def processor(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def test_layout_is_kept_and_has_pieces_of_its_own(processor):
    for text in [*SOURCE, tokenizer.PROBE, "", " ", "\n\n\n", "\t\t", "   x   ", "\r\n"]:
        assert processor.decode(processor.encode(text)) == text
    assert processor.id_to_piece(processor.encode("x"))[0] == "x"  # no dummy space before it
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    assert processor.get_piece_size() == 330 and processor.eos_id() == 1 and processor.unk_id() == 0
    assert "▁▁▁▁" in pieces and any("\n" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=80))
def test_any_text_comes_back(processor, text):
    ids = processor.encode(text)
    assert processor.decode(ids) == text
    assert processor.unk_id() not in ids and processor.eos_id() not in ids


def test_the_same_input_gives_the_same_model(corpus, model):
    assert tokenizer.train(corpus, 330)[0] == model


def test_memory_is_bounded_by_taking_an_even_share(corpus):
    texts = [f"text {i}" for i in range(1000)]
    some = list(tokenizer._thinned(iter(texts), 0.1))
    assert len(some) == 100 and some[0] == "text 9" and some[-1] == "text 999"
    assert list(tokenizer._thinned(iter(texts), 3.0)) == texts
    assert tokenizer.train(corpus, 310, megabytes=0.01)[0]


@pytest.mark.parametrize(("size", "what"), [(1, "258 pieces"), (258, "258 pieces"), (262, "smaller than required"),
                                            (100_000, "too high")])
def test_an_impossible_size_is_refused(corpus, size, what):
    with pytest.raises(DataError, match=what) as caught:
        tokenizer.train(corpus, size)
    assert "--vocab-size" in str(caught.value)


def test_a_model_that_changes_text_is_refused(corpus):
    lossy = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SOURCE), model_writer=lossy, vocab_size=80,
                                             model_type="bpe", minloglevel=2)
    with pytest.raises(DataError, match="does not keep a text's layout"):
        tokenizer.check_round_trip(lossy.getvalue(), iter(SOURCE), 100)


def test_the_one_character_that_cannot_come_back_is_counted(model):
    assert tokenizer.check_round_trip(model, iter(["a▁b", "fine"]), 7) == 1


def test_is_saved_whole_with_one_line_a_piece(model, tmp_path):
    tokenizer.save(model, tmp_path / "tok")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tok.model", "tok.vocab"]
    assert tokenizer.load(tmp_path / "tok.model").get_piece_size() == 330
    assert len((tmp_path / "tok.vocab").read_text(encoding="utf-8").splitlines()) == 330


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        tokenizer.load(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"\x00\x01 no model")
    with pytest.raises(DataError, match="is no sentencepiece model"):
        tokenizer.load(tmp_path / "bad.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(DataError, match="is no sentencepiece model"):
        tokenizer.load(tmp_path / "empty.model")
