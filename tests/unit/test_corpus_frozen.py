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
    (SENTENCEPIECE, False): ("b244ccf81641cce0e082b29385343bf570b5be4f9806b2e14a09e4608f14f764",
                             "8d094763467a5ac94bba42d0c8edbd463d4d6c71d1aaa0eaaaf067ec9733e6e8"),
    (SENTENCEPIECE, True): ("a324222dd2899f60431dee282de7aa9f0de053cee6aaa026c6fe47c34eb1a8a0",
                            "3e8b065b7aa25be616fc6b97597910ad08e29d52be1b589f2da20aca6f5db76b"),
    (GPT2_BPE, False): ("9ca22990699a2bae85a199671edea7e04494d2950e554b17825eeeeaf8ac47af",
                        "17bc4494023fcb82a6c55f9134e7c51c1171cd41ec0ba53e77d1cb3cda167c67"),
    (GPT2_BPE, True): ("23e04b79ac07328266dd8d14269d4f8c8eec1ba603496ed958389d5c176bb41b",
                       "fdf54f2a520cd4fe0045a7f4e8488148f759ec74d0861e7587c96dbe7625eb5a"),
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
