"""data/tiktoken_files.py: the ids of Megatron's TikTokenizer."""

import base64
import dataclasses
import json

import pytest

from megatron_nca.data.encoders import SENTENCEPIECE, TIKTOKEN, TokenizerFiles
from megatron_nca.data.tiktoken_files import SPECIAL_TOKENS, TiktokenRules
from megatron_nca.errors import DataError

tiktoken = pytest.importorskip("tiktoken")

SEQUENCES = [*(bytes([byte]) for byte in range(256)), b"th", b"he", b"the", b" the", b"  ", b"in", b" x", b"\n\n",
             b"\xc3\xa9", b"12", b"def", b"de"]
RULES = TiktokenRules(num_special_tokens=10, vocab_size=10 + len(SEQUENCES))
TEXTS = ["the x in  there\n\n", "d\u00e9f caf\u00e9 12 123 \u4e2d\u6587 \U0001f600", "", "def f(x):\r\n\treturn 'The'"]


@pytest.fixture
def ranks(tmp_path):
    """The same ranks in both kinds of file."""
    encoded = [base64.b64encode(sequence).decode() for sequence in SEQUENCES]
    (tmp_path / "a.tiktoken").write_text("".join(f"{text} {rank}\n" for rank, text in enumerate(encoded)))
    entries = [{"rank": rank, "token_bytes": text, "token_str": None} for rank, text in enumerate(encoded)]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.mark.parametrize("pattern", ["v1", "v2"])
def test_ids_are_megatrons(ranks, pattern):
    library = pytest.importorskip("megatron.core.tokenizers.text.libraries.tiktoken_tokenizer")
    theirs = library.TikTokenTokenizer(str(ranks / "a.json"), num_special_tokens=10, pattern=pattern,
                                       vocab_size=RULES.vocab_size)
    for name in ("a.json", "a.tiktoken"):
        rules = dataclasses.replace(RULES, pattern=pattern)
        ours = TokenizerFiles(type=TIKTOKEN, model=ranks / name, tiktoken=rules).load()
        assert ours.encode(TEXTS).tolist() == [theirs.text_to_ids(text) for text in TEXTS]
        assert (ours.vocab_size, ours.eod, ours.unknown) == (theirs.vocab_size, theirs.eod, theirs.unk_id)


def test_a_special_token_in_a_text_is_text(ranks):
    encoder = TokenizerFiles(type=TIKTOKEN, model=ranks / "a.tiktoken", tiktoken=RULES).load()
    [ids] = encoder.encode(["</s>"]).tolist()
    assert ids == [10 + byte for byte in b"</s>"] and encoder.eod == 2


def test_a_text_that_the_library_fails_at_is_one_message(ranks):
    encoder = TokenizerFiles(type=TIKTOKEN, model=ranks / "a.tiktoken", tiktoken=RULES).load()
    with pytest.raises(DataError, match=r"a text of 1,000,001 characters that begins with '  .*Cure"):
        encoder.encode([" " * 1_000_000 + "x"])


def test_what_decides_the_ids_is_in_the_fingerprint(ranks):
    def fingerprint(**changes):
        rules = dataclasses.replace(RULES, **changes)
        return TokenizerFiles(type=TIKTOKEN, model=ranks / "a.tiktoken", tiktoken=rules).fingerprint()

    assert fingerprint() == fingerprint()
    assert len({fingerprint(**each)["sha256"] for each in ({}, {"pattern": "v1"}, {"num_special_tokens": 9})}) == 3
    assert json.loads(json.dumps(fingerprint())) == fingerprint()


def test_bad_files_and_rules_are_one_message(ranks):
    model = ranks / "a.tiktoken"

    def load(**changes):
        return TokenizerFiles(type=TIKTOKEN, model=model, tiktoken=dataclasses.replace(RULES, **changes)).load()

    for changes, what in [({"vocab_size": 5000}, "Cure: --vocab-size 278"), ({"pattern": "("}, "--tiktoken-pattern"),
                          ({"special_tokens": SPECIAL_TOKENS[1:]}, "--tiktoken-special-tokens"),
                          ({"num_special_tokens": 3}, "--tiktoken-num-special-tokens")]:
        with pytest.raises(DataError, match=what):
            load(**changes)
    with pytest.raises(DataError, match="has no use for it"):
        TokenizerFiles(type=SENTENCEPIECE, model=model, tiktoken=RULES)
    lines = model.read_text().splitlines()
    for content, what in [("AA== x\n", "is no file of tiktoken's ranks"), ("\n".join(lines[1:]), "its ranks are not"),
                          ("\n".join(["AQ== 0", *lines[1:]]), "names a byte sequence twice")]:
        model.write_text(content)
        with pytest.raises(DataError, match=what):
            load()
