"""The bytes of Megatron-LM core_v0.16.1's own tool on 33 MB of pinned text; docs/corpora.md has the commands."""

from pathlib import Path

import pinned_text
import pytest

from megatron_nca import files
from megatron_nca.data import stretches
from megatron_nca.data.encoders import GPT2_BPE, SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.manifest import part
from megatron_nca.data.preprocess import preprocess

GOLDEN = Path(__file__).resolve().parents[1] / "golden/tokenizers"
TOKENIZERS = {
    SENTENCEPIECE: {"model": GOLDEN / "sentencepiece.model"},
    GPT2_BPE: {"vocab_file": GOLDEN / "vocab.json", "merge_file": GOLDEN / "merges.txt"},
}
SMALL = {  # (tokenizer, --append-eod): sha256 of .bin and .idx
    (SENTENCEPIECE, False): ("0aefb98bf8feaa78c7d01356ee885ba20aba4a2a6af132ebbbed96d478001cb1",
                             "864b5d730c05d7a8633489d83e3a80369013505d6fc64ca1b01e814bf39e533b"),
    (SENTENCEPIECE, True): ("6610bfe28be9d1491d31bc21922847580bdee3f606c29d74f66cc62d68737961",
                            "76e5a8120563e777388b8ee9902ebc566a026af8cdfaef4cbd18b3da32c3bc2c"),
    (GPT2_BPE, False): ("570b51739d66d99dbdb48a09a88b3f42442f6be045d476dbf3141d1e9f85e33f",
                        "1e651d71de73c3397924f15b5b8c45a2f6c1ee43d13df9f5bbb413f2bdbd2f5b"),
    (GPT2_BPE, True): ("4c46d1326ce2689adf311f6a28bb40234030311afa3ee461213fbb6269293b67",
                       "d31c310e8454b7f837179c294d0c40d900a2d3a12988213a1abe39285eae1cbd"),
}
WHOLE = {
    (SENTENCEPIECE, False): ("3d085259f3cae81640c1def949cc2d82eb30c77338ee7d9b870422483924fb31",
                             "6d827adbd0f0e020b1abb438c2e35a38e3cd9d173f9b742e2b3af8ebf550d640"),
    (SENTENCEPIECE, True): ("f8d7eb1f63bac4ba525b49361fe94e5449aec53420168ec440688beb462547eb",
                            "5e65d6813c5d7c5c656b51993219a39d34478c1b4eca7631f667cb848a3c00a9"),
    (GPT2_BPE, False): ("ff21dee66ab6db132447a6137779cfbcd3a114fb8c158d075627386ccc8062b3",
                        "b0d201f45a281b4d25df252ce67b058ebb16fbde9aea8770acb84e13dd78e280"),
    (GPT2_BPE, True): ("a3581f0def3c835c94d2a22749470655ff4a40e82febbfc89db3eb0d80689bea",
                       "54c92f751ec9169c454449777d40ca857b6d4630e2b32f43cec9530af9b4057a"),
}


def check(path: Path, which: str, append_eod: bool, frozen: tuple[str, str], workers: int) -> None:
    settings = Preprocessing(inputs=stretches.recognise([path]), append_eod=append_eod,
                             tokenizer=TokenizerFiles(type=which, **TOKENIZERS[which]))
    preprocess(settings, path.with_name("out"), workers)
    made = [files.sha256(part(path.with_name("out_text_document"), ending)) for ending in ("bin", "idx")]
    assert made == list(frozen), (which, append_eod)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.jsonl"
    assert pinned_text.write(path, pinned_text.SMALL) == pinned_text.SMALL_SHA256
    return path


@pytest.mark.parametrize(("which", "append_eod"), SMALL)
def test_the_first_files_are_megatrons_byte_for_byte(small, which, append_eod):
    check(small, which, append_eod, SMALL[which, append_eod], 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "pinned.jsonl"
    assert pinned_text.write(path) == pinned_text.SHA256 and path.stat().st_size > 30_000_000
    return path


@pytest.mark.long
@pytest.mark.parametrize(("which", "append_eod"), WHOLE)
def test_all_of_the_pinned_text_is_megatrons_byte_for_byte(whole, which, append_eod):
    check(whole, which, append_eod, WHOLE[which, append_eod], 2)
