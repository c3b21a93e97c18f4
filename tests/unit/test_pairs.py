"""Fine-tuning data: prompts and answers with a loss mask, the layouts of GSM8K and BIG-bench, the loss of a step."""

import json
import os
import random

import numpy as np
import pytest

from megatron_nca.data import copies, tokenizer
from megatron_nca.data.blend import Blend
from megatron_nca.data.encoders import SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.merge import merge
from megatron_nca.data.pairs import Pairs, make_pairs, mask_prefix
from megatron_nca.errors import DataError
from megatron_nca.files import hold

CHANCE = random.Random(0)
PAIRS = [("".join(CHANCE.choices("abcdef ", k=30)), "".join(CHANCE.choices("uvwxyz", k=1 + i % 9))) for i in range(200)]
"""Prompts and answers have no letter in common, so a token says by itself which it is of."""
END = 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    lines = [{"text": text} for pair in PAIRS for text in pair]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer.save(tokenizer.train(folder / "a.jsonl", 280)[0], folder / "tok")
    lines = [{"question": prompt, "answer": answer} for prompt, answer in PAIRS]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings(files, name="gsm8k.jsonl", layout="gsm8k", **others):
    chosen = TokenizerFiles(type=SENTENCEPIECE, model=files / "tok.model")
    return Pairs(inputs=(files / name,), tokenizer=chosen, layout=layout, **others)


def read(prefix, files):
    """The pairs of a dataset as text, by its mask."""
    text, mask = IndexedReader(prefix), IndexedReader(mask_prefix(prefix))
    processor = tokenizer.load(files / "tok.model")
    assert np.array_equal(text.lengths, mask.lengths)
    found = []
    for index in range(len(text)):
        tokens, scored = text[index], mask[index].astype(bool)
        assert np.all(np.diff(scored.astype(int)) >= 0) and tokens[-1] == END
        found.append(tuple(processor.decode(part.tolist()) for part in (tokens[~scored], tokens[scored][:-1])))
    return found


def test_gsm8k_is_question_and_answer(files, tmp_path):
    [manifest] = make_pairs(settings(files), tmp_path / "out")
    assert read(tmp_path / "out_text_document", files) == [(prompt + "\n", answer) for prompt, answer in PAIRS]
    assert read(copies.copy(tmp_path / "out_text_document", tmp_path / "disk"), files) == read(
        tmp_path / "out_text_document", files)
    mask = IndexedReader(tmp_path / "out_loss_mask")
    assert manifest.origin["answer_tokens"] == mask.stream(0, mask.tokens).sum() > 200
    with pytest.raises(DataError, match="has a loss mask, which would be lost"):
        merge([tmp_path / "out_text_document"] * 2, tmp_path / "merged")


def test_a_part_that_is_no_longer_held_out_is_removed_with_its_mask(files, tmp_path, capsys):
    make_pairs(settings(files, hold_out=(("validation", 0.3), ("test", 0.2))), tmp_path / "out")
    make_pairs(settings(files), tmp_path / "out_valid")
    make_pairs(settings(files, hold_out=(("test", 0.3),)), tmp_path / "out")
    err = capsys.readouterr().err
    assert "out_validation_loss_mask: was made" in err and err.count("it is removed") == 2
    left = {path.name.rpartition(".")[0] for path in tmp_path.iterdir()}
    expected = {f"out{part}{what}" for part in ("", "_test", "_valid") for what in ("_text_document", "_loss_mask")}
    assert left == expected


def test_bigbench_has_targets_or_scores_and_prefixes(files, tmp_path):
    examples = [{"input": "abc", "target": "uvw"}, {"input": "b", "target": ["x", "y"]},
                {"input": "c", "target_scores": {"u": 0, "v": 1, "w": 1}}]
    (files / "task.json").write_text(json.dumps({"examples": examples, "example_output_prefix": "\nfad: "}))
    make_pairs(settings(files, "task.json", "bigbench"), tmp_path / "out")
    expected = [("\nQ: abc\nfad: ", "uvw"), ("\nQ: b\nfad: ", "x"), ("\nQ: c\nfad: ", "v")]
    assert read(tmp_path / "out_text_document", files) == expected
    for content, what in [("[]", "is no task of BIG-bench"), ('{"examples": 3}', "is no task of BIG-bench"),
                          ('{"examples": [{"input": "a"}]}', "example 0 has no")]:
        (files / "task.json").write_text(content)
        with pytest.raises(DataError, match=what):
            make_pairs(settings(files, "task.json", "bigbench"), tmp_path / "other")


def test_of_two_runs_at_a_prefix_the_second_is_refused(files, tmp_path):
    """Or the mask of one could stand beside the text of the other."""
    lock = hold(tmp_path / ".out.pairs.lock", tmp_path)
    elsewhere = tmp_path / ".out_text_document.bin.99999999.tmp"  # of a process on another machine
    elsewhere.touch()
    with pytest.raises(DataError, match="out: another run is at work here"):
        make_pairs(settings(files), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {".out.pairs.lock", elsewhere.name}
    os.close(lock)  # as a killed one leaves it
    make_pairs(settings(files), tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 6


def test_what_cannot_be_scored_is_refused(files, tmp_path):
    for line, what in [({"question": "a"}, r"bad\.jsonl:1: has no key 'answer'"),
                       ({"question": "a", "answer": ""}, "empty answer")]:
        (files / "bad.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(DataError, match=what):
            make_pairs(settings(files, "bad.jsonl"), tmp_path / "out")
    with pytest.raises(DataError, match="--json-keys"):
        settings(files, layout="keys")
    with pytest.raises(DataError, match=r"none\.jsonl: is missing"):
        settings(files, "none.jsonl")
    with pytest.raises(DataError, match="names a part twice"):
        settings(files, hold_out=(("test", 0.1), ("test", 0.2)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["stop", "skip", "quarantine"])
def test_bad_pairs_are_dealt_with_as_bad_lines_of_a_corpus(files, tmp_path, capsys, policy):
    good = [{"question": prompt, "answer": answer} for prompt, answer in PAIRS[:3]]
    lines = [json.dumps(each) for each in (good[0], {"question": "a", "answer": ""}, good[1])] + ["{", "[]"]
    (files / "bad.jsonl").write_text("\n".join([*lines, json.dumps(good[2])]) + "\n")
    asked = settings(files, "bad.jsonl", on_bad_line=policy)
    if policy == "stop":  # though the line with another mistake is read before this one is encoded
        with pytest.raises(DataError, match=r"bad\.jsonl: pair 2 of the input has the empty answer ''"):
            make_pairs(asked, tmp_path / "out")
        assert not list(tmp_path.iterdir())
        return
    origin = make_pairs(asked, tmp_path / "out")[0].origin
    assert read(tmp_path / "out_text_document", files) == [(prompt + "\n", answer) for prompt, answer in PAIRS[:3]]
    assert (origin["lines"], origin["left_out_lines"]) == (6, 3)
    assert origin["left_out_by_reason"] == {"an empty answer": 1, "not JSON": 1, "not an object": 1}
    assert "3 bad lines were left out, the first: " in capsys.readouterr().err
    rejected = tmp_path / "out_rejected.jsonl"
    assert rejected.exists() == (policy == "quarantine")
    if policy == "quarantine":
        kept = [json.loads(line)["raw"] for line in rejected.read_text().splitlines()]
        assert kept == ['["a\\n", ""]', "{\n", "[]\n"]
        make_pairs(settings(files, "bad.jsonl", on_bad_line="skip"), tmp_path / "out")
        assert not rejected.exists() and f"{rejected}: was made for this prefix" in capsys.readouterr().err
        (files / "worst.jsonl").write_text("{\n")
        with pytest.raises(DataError, match=r"all 1 lines were bad \(not JSON: 1\)\. Cure: .*worst.jsonl:1: is not"):
            make_pairs(settings(files, "worst.jsonl", on_bad_line=policy), tmp_path / "other")
        assert not list(tmp_path.glob("*other*"))


def test_the_loss_of_a_step_is_the_mean_over_answers(files, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("megatron.core")
    from megatron_nca.config.recipe import recipe_from_dict
    from megatron_nca.mcore.datasets import _masks
    from megatron_nca.mcore.engine import build_engine, datasets, read_ranks

    make_pairs(settings(files, hold_out=(("validation", 0.3),)), tmp_path / "out")
    prefixes = [tmp_path / f"out{part}_text_document" for part in ("", "_validation")]
    recipe = recipe_from_dict({
        "name": "pairs", "control": "one", "arms": {"one": {"steps": [{"phase": "tune"}]}},
        "model": {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "ffn_hidden_size": 64, "sequence_length": 32},
        "datasets": {"text": {"source": "indexed", "vocab_size": 280, "train_prefix": "-", "validation_prefix": "-"}},
        "phases": {"tune": {"dataset": "text", "iterations": 2, "global_batch_size": 8, "micro_batch_size": 4,
                            "precision": "fp32", "validation_sequences": 8, "optimizer": {"lr": 1e-2}}}})
    engine = build_engine(recipe.model_config("tune"), recipe.phases["tune"], read_ranks(), seed=0)
    try:
        data = datasets(*(Blend.of((1.0, prefix)) for prefix in prefixes), 32, 5, 16, 8, tmp_path / "cache", 280)
        prompts = torch.tensor(sorted({token for prompt, _ in PAIRS for token in encoded(files, prompt + "\n")}))
        batches = list(data.train_batches(0, 8, 4, torch.device("cpu")))
        total, count = 0.0, 0
        with torch.no_grad():
            for parameter in engine.chunks[0].parameters():
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
            for batch in batches:
                losses = engine.chunks[0](batch["tokens"], None, None, labels=batch["labels"])
                answers = ~torch.isin(batch["labels"], prompts)
                assert torch.equal(batch["loss_mask"], answers.float())
                total, count = total + losses[answers].sum().item(), count + int(answers.sum())
        assert 0 < count < 8 * 32 // 2 and total > 0
        assert engine.train_step(iter(batches), 0).loss == pytest.approx(total / count, rel=1e-6)

        mixed = Blend.of((0.7, prefixes[0]), (0.3, prefixes[1]))
        data = datasets(mixed, Blend.of((1.0, prefixes[1])), 32, 5, 40, 8, tmp_path / "cache", 280)
        for batch in data.train_batches(0, 40, 4, torch.device("cpu")):
            assert torch.equal(batch["loss_mask"], (~torch.isin(batch["labels"], prompts)).float())
    finally:
        engine.close()
    mask = mask_prefix(prefixes[0])
    Manifest.load(mask).replace(files=Manifest.load(mask_prefix(prefixes[1])).files).save(mask)
    for ending in ("bin", "idx"):
        other = mask_prefix(prefixes[1]).with_name(f"{mask_prefix(prefixes[1]).name}.{ending}")
        mask.with_name(f"{mask.name}.{ending}").write_bytes(other.read_bytes())
    with pytest.raises(DataError, match="is not the loss mask of"):
        _masks(Blend.of((1.0, prefixes[0])), [Manifest.load(prefixes[0])])


def encoded(files, text):
    return tokenizer.load(files / "tok.model").encode(text)
