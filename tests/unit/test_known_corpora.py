"""data_tools/corpora.yaml: each corpus is read by its own field and compared with what is known of it."""

import importlib.util
import json
from pathlib import Path

import pytest

from megatron_nca.data import known_corpora, tokenizer
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import ConfigError, DataError

TOOLS = Path(__file__).resolve().parents[2] / "data_tools"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("preprocess_corpus", TOOLS / "preprocess_corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    for key in ("text", "content"):
        lines = [json.dumps({key: f"def f{number}(x):\n    return x\n", "size": 6}) for number in range(400)]
        (folder / f"{key}.jsonl").write_text("\n".join(lines))
    tokenizer.save(tokenizer.train(folder / "text.jsonl", 285)[0], folder / "tok")
    return folder


@pytest.mark.parametrize(("name", "key"), [("openwebtext", "text"), ("codeparrot", "content")])
def test_the_tool_takes_what_the_table_says(tool, folder, capsys, name, key):
    words = ["--corpus", name, "--input", folder / f"{key}.jsonl", "--output-prefix", folder / name, "--tokenizer-type",
             "SentencePieceTokenizer", "--tokenizer-model", folder / "tok.model", "--hold-out", "validation=0.1"]
    arguments = tool.build_parser().parse_args([*map(str, words)])
    tool.main(arguments)
    manifest = Manifest.load(folder / f"{name}_validation_{key}_document")
    assert manifest.origin["append_eod"] and manifest.origin["hold_out"] == {"validation": 0.1}
    out, err = capsys.readouterr()
    assert f"with --json-keys {key} --append-eod --hold-out validation=0.1" in err
    assert ": FEWER.\n" in out and ("not a SentencePieceTokenizer" in out) == (name == "openwebtext")
    arguments.json_keys = ["other"]
    with pytest.raises(ConfigError, match="leave out --corpus"):
        tool.main(arguments)


def test_every_corpus_of_the_table_is_sound():
    for name in ("openwebtext", "openwebmath", "codeparrot", "c4"):
        known = known_corpora.load(TOOLS / "corpora.yaml", name)
        assert 0 < sum(known.hold_out.values()) < 0.1 and known.expected.low > 1e8
    for name, said in (("codeparot", r"Did you mean 'codeparrot'\?"),
                       ("nosuch", "Known: openwebtext, openwebmath, codeparrot, c4\\.")):
        with pytest.raises(DataError, match=rf"corpora\.yaml\. {said} Cure: name one that is there, or leave it out\."):
            known_corpora.load(TOOLS / "corpora.yaml", name)
