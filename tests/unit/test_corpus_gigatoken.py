"""data/gigatoken_encoder.py: the tokens of the package tokenizers, or an error."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nca.data import gigatoken_encoder
from megatron_nca.data.encoders import HUGGING_FACE, SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import DataError

pytest.importorskip("gigatoken", reason="its pins are for Python 3.11 and newer")

GPT2 = None  # ByteLevel's own
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
QWEN = LLAMA.replace("{1,3}", "")
SAMPLE = ("def f(x):\n\treturn x  +  1   # it's  the\u00a0same \u4e2d\u6587 na\u00efve caf\u0065\u0301 1234 __init__"
          "\r\n\n\n<|end|>")
ALPHABET = " \n\t\r\u00a0ab'sTLl12_\u00e9\u4e2d\U0001f600\u0301.<|end|>+"
TEXTS = st.lists(st.one_of(st.text(ALPHABET, max_size=80), st.text(max_size=40)), max_size=5)


def save(folder, pattern=GPT2, normalizer=None):
    """A trained byte-level BPE with a special token, and one that is not special."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    fast.pre_tokenizer = byte_level if pattern is None else pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    fast.normalizer = normalizer and getattr(normalizers, normalizer)()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<|end|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    fast.train_from_iterator([SAMPLE * 20], trainer)
    fast.add_tokens([AddedToken("ab'", special=False, normalized=False)])
    folder.mkdir(exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


@pytest.mark.parametrize(("pattern", "normalizer"), [(GPT2, None), (LLAMA, None), (QWEN, "NFC")],
                         ids=["gpt2", "llama 3", "qwen 2"])
def test_tokens_are_those_of_tokenizers(tmp_path_factory, pattern, normalizer):
    folder = save(tmp_path_factory.mktemp("fast"), pattern, normalizer)
    slow = TokenizerFiles(type=HUGGING_FACE, model=folder).load()
    fast = TokenizerFiles(type=HUGGING_FACE, model=folder, gigatoken=True).load()
    assert (fast.vocab_size, fast.eod, fast.unknown) == (slow.vocab_size, slow.eod, slow.unknown)

    @settings(max_examples=300, deadline=None)
    @given(texts=TEXTS)
    def agree(texts):
        assert fast.encode(texts).tolist() == slow.encode(texts).tolist()

    agree()
    [ids] = fast.encode(["a <|end|>"]).tolist()
    assert fast.eod not in ids and len(ids) > 3, "what looks like a special token is text"


def test_a_difference_is_found_at_the_beginning_and_on_the_way(tmp_path):
    path = save(tmp_path) / "tokenizer.json"
    right = TokenizerFiles(type=HUGGING_FACE, model=tmp_path).load().encode

    def wrong_about(text):
        return lambda texts: [ids[:-1] if text in each else ids
                              for each, ids in zip(texts, right(texts).tolist(), strict=True)]

    with pytest.raises(DataError, match="gives other tokens than tokenizers for the text that begins with"):
        gigatoken_encoder.load(path, wrong_about(gigatoken_encoder.PROBE[0]))
    encode = gigatoken_encoder.load(path, wrong_about("zebra"))
    encode(["a horse"] * 255)
    encode(["a zebra", "a horse"])  # the second is text 256
    encode(["a horse"] * 255)
    with pytest.raises(DataError, match="'a zebra'"):
        encode(["a zebra", "a horse"])


def test_what_it_cannot_read_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"--use-gigatoken = True: it cannot read .*Cure: leave it out"):
        TokenizerFiles(type=HUGGING_FACE, model=tmp_path, gigatoken=True).load()
    with pytest.raises(DataError, match="SentencePieceTokenizer has no use for it"):
        TokenizerFiles(type=SENTENCEPIECE, model=tmp_path, gigatoken=True)


def test_the_tool_makes_the_same_dataset_and_the_manifest_names_the_package(tmp_path):
    folder = save(tmp_path / "fast")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": SAMPLE[number % 40 :] * 3}) + "\n"
                                               for number in range(400)))
    for name, flags in (("slow", []), ("fast", ["--use-gigatoken"])):
        subprocess.run([sys.executable, "data_tools/preprocess_corpus.py", "--input", tmp_path / "in.jsonl",
                        "--output-prefix", tmp_path / name, "--append-eod", "--tokenizer-type", HUGGING_FACE,
                        "--tokenizer-model", folder, "--workers", "2" if flags else "1", *flags],
                       check=True, capture_output=True)  # fmt: skip
    for ending in ("bin", "idx"):
        slow, fast = ((tmp_path / f"{name}_text_document.{ending}").read_bytes() for name in ("slow", "fast"))
        assert slow == fast
    origin = Manifest.load(tmp_path / "fast_text_document").origin
    assert origin["encoder"] == f"gigatoken {gigatoken_encoder.version()}"
