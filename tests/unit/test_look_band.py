"""The verb `band`: texts whose place on the automata's scale is known, and what it gives a recipe."""

import gzip
import json
import os
import re

import numpy as np
import pytest
import yaml

from megatron_nca.__main__ import main
from megatron_nca.config.law import NcaLaw, preset, replace
from megatron_nca.config.recipe import _resolve_law
from megatron_nca.config.schema import build
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.manifest import part
from megatron_nca.look import band
from megatron_nca.nca import complexity

LAW = NcaLaw()
SMALL = ["--num-states", "4", "--grid", "8", "8", "--candidates", "256", "--threads", "1"]
ALPHABET = 3000


def corpus(prefix, tokens: np.ndarray, num_tokens: int = ALPHABET):
    with IndexedWriter(prefix, num_tokens) as writer:
        for document in np.array_split(tokens, 7):
            writer.add_document(document)
        writer.finish({"kind": "corpus", "vocab_size": num_tokens, "origin": {"tokenizer": {"sha256": "t"}}})
    return prefix


def words(rng, count: int) -> np.ndarray:
    """Text of a kind: 200 frequent ids, and phrases that come again."""
    phrases = [rng.integers(0, 200, rng.integers(2, 9)) for _ in range(60)]
    return np.concatenate([phrases[i] for i in rng.zipf(1.3, count) % 60])


def test_a_windows_ratio_is_pythons_gzip_of_its_tokens_as_int32(tmp_path):
    tokens = words(np.random.default_rng(1), 3000)
    opened = band.open_corpus([corpus(tmp_path / "text", tokens)], LAW)
    assert (opened.alphabet, opened.length, opened.windows) == (ALPHABET, 360, len(tokens) // 360)
    measured = band.measure(opened, 10**6, seed=0)
    for number in range(opened.windows):
        content = tokens[number * 360 : (number + 1) * 360].astype("<i4").tobytes()
        assert measured.ratios[number] == len(gzip.compress(content, 9)) / 1440
    assert measured.uniform == complexity.mean_ratio(
        complexity.gzip_ratio(complexity.uniform_tokens(ALPHABET, 360)[:, None]), 1440)
    assert (measured.calibrated == measured.ratios / measured.uniform).all()
    assert measured.ratios.max() < measured.unigram < measured.uniform


def test_uniform_tokens_lie_at_one_and_draws_of_a_texts_tokens_at_its_unigram_ratio(tmp_path):
    rng = np.random.default_rng(2)
    uniform = band.measure(band.open_corpus([corpus(tmp_path / "u", rng.integers(0, ALPHABET, 90_000))], LAW), 99, 0)
    assert uniform.calibrated.mean() == pytest.approx(1, abs=0.003)
    drawn = rng.permutation(words(rng, 30_000))
    measured = band.measure(band.open_corpus([corpus(tmp_path / "d", drawn)], LAW), 99, 0)
    assert (measured.ratios / measured.unigram).mean() == pytest.approx(1, abs=0.01)
    assert measured.calibrated.max() < 0.8


def test_windows_lie_evenly_and_are_the_same_for_a_seed():
    chosen = band.places(10_007, 100, 5)
    assert len(set(chosen)) == 100 and (np.diff(chosen) > 0).all()
    assert (chosen // 100.07 == np.arange(100)).all()
    assert (chosen == band.places(10_007, 100, 5)).all() and (chosen != band.places(10_007, 100, 6)).any()
    assert band.places(7, 100, 5).tolist() == list(range(7))


def test_bytes_of_text_files_are_one_text(tmp_path):
    content = [b"some words of a text, which are some words. " * 99, b"\x00\xff" * 2000, b"short"]
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for path, data in zip(paths, content, strict=True):
        path.write_bytes(data)
    opened = band.open_corpus(paths, LAW)
    assert (opened.length, opened.windows, opened.alphabet) == (1440, 5, 256)
    got = [bytes(opened.window(number)) for number in range(5)]
    assert got == [content[0][:1440], content[0][1440:2880], content[0][2880:4320], content[1][:1440],
                   content[1][1440:2880]]
    measured = band.measure(opened, 99, 0)
    assert measured.ratios[0] == len(gzip.compress(got[0], 9)) / 1440


def test_the_band_of_a_text_as_lines_of_a_recipe(tmp_path, capsys):
    prefix = corpus(tmp_path / "text", words(np.random.default_rng(3), 6000))
    out, plot = tmp_path / "band.json", tmp_path / "band.png"
    assert main(["band", str(prefix), *SMALL, "--json", str(out), "--plot", str(plot)]) == 0
    said, figures = capsys.readouterr().out, json.loads(out.read_text())
    pasted = said[said.index("law:") : said.index("for generate")]
    law = build(NcaLaw, _resolve_law(yaml.safe_load(pasted)["law"], "law"))
    assert law == replace(preset("released"), num_states=4, height=8, width=8, band=tuple(figures["band"]),
                          band_scale="calibrated")
    complexity.check_band(law)
    assert figures["quantiles"]["calibrated"]["0.1"] == pytest.approx(law.band[0], abs=0.001)
    assert figures["quantiles"]["calibrated"]["0.9"] == pytest.approx(law.band[1], abs=0.001)
    assert sum(figures["histogram"]["corpus"]) == figures["windows"] == figures["windows there"]
    assert sum(figures["histogram"]["rules"]) == 256 and figures["candidates passed"] > 0
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert band.open_corpus([part(prefix, "json")], law).name == str(prefix)
    assert main(["band", f"{prefix}.idx", *SMALL, "--threads", "2", "--json", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()


def test_a_band_that_no_rule_reaches_ends_with_2_and_its_figures(tmp_path, capsys):
    prefix = corpus(tmp_path / "text", np.random.default_rng(4).integers(0, ALPHABET, 9000))
    out = tmp_path / "band.json"
    assert main(["band", str(prefix), *SMALL, "--quantiles", "0.9", "0.95", "--json", str(out)]) == 2
    said = capsys.readouterr()
    assert "no rule of 256 candidates lies there" in said.err and "law:" not in said.out and out.exists()


def test_what_is_no_text_is_refused(tmp_path, capsys):
    prefix = corpus(tmp_path / "text", np.arange(2000))
    for name, content in (("a.jsonl", b"{}"), ("tiny.txt", b"a few words")):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    cases = [(["a.jsonl"], "is no plain text"), (["tiny.txt"], "shorter than one window of 640 bytes"),
             (["none.txt"], "none.txt: is missing"), (["pipe"], "pipe: is a pipe or device"),
             (["text", "tiny.txt"], "is an indexed dataset among others"),
             (["text", "--windows", "0"], "--windows = 0"), (["text", "--quantiles", "0.9", "0.1"], "--quantiles"),
             (["text", "--seed", str(2**63)], "--seed = .* must lie in 0"),
             (["text", "--alphabet", "700"], "--alphabet = 700: .* holds the token")]
    for names, message in cases:
        words = [str(tmp_path / name) if not name.startswith("-") and not name[0].isdigit() else name for name in names]
        assert main(["band", *words, *SMALL]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert main(["band", str(prefix), *SMALL, "--candidates", "99999999999"]) == 2
    assert "held in memory" in capsys.readouterr().err
    for flag in ("--json", "--plot"):
        assert main(["band", str(prefix), *SMALL, flag, str(tmp_path)]) == 2
        assert f"{tmp_path}: is a folder. Cure: " in capsys.readouterr().err and part(prefix, "bin").exists()
    part(prefix, "json").unlink()
    assert main(["band", str(prefix), *SMALL]) == 2
    assert "has no manifest" in capsys.readouterr().err
    assert main(["band", str(prefix), "--alphabet", "3000", *SMALL, "--quantiles", "0", "1"]) == 0
