"""Figures, pictures and text of datasets whose content is known."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_nca.config.controls import DyckLaw
from megatron_nca.config.law import NcaLaw
from megatron_nca.config.schema import to_dict
from megatron_nca.data import tokenizer
from megatron_nca.data.encoders import SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.merge import merge
from megatron_nca.data.preprocess import preprocess
from megatron_nca.data.stretches import recognise
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import DataError
from megatron_nca.look import decoding, picture, quality
from megatron_nca.look.opened import Opened
from megatron_nca.nca import patches
from megatron_nca.sources.corpus_copy import CorpusCopySource
from megatron_nca.sources.dyck import DyckSource
from megatron_nca.sources.nca import NcaSource
from megatron_nca.sources.shuffled import ShuffledSource
from megatron_nca.sources.writing import generate

pytest.importorskip("matplotlib")
from matplotlib import image

SCRIPT = Path(__file__).parents[2] / "data_tools" / "show_dataset.py"
LAW = NcaLaw(num_states=3, height=4, width=6, sequence_length=31, score_frames=4, band=(0.1, 1.0))
"""Frames of 6 patches and 2 delimiters, 4 in a document of 32 tokens."""


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """(5, 4, 4, 6): sequences 0, 1, 2 at random, 3 equal to 1, 4 standing still."""
    cells = np.random.default_rng(0).integers(0, 3, (5, 4, 4, 6))
    cells[3] = cells[1]
    cells[4] = cells[4, :1]
    return cells


def write(prefix: Path, frames: np.ndarray, **origin: object) -> Path:
    with IndexedWriter(prefix, LAW.num_tokens, Trajectory.of_law(LAW)) as writer:
        writer.add_documents(patches.encode_sequence(frames, 3, 2))
        writer.finish({"kind": "nca", "vocab_size": LAW.vocab_size, "origin": origin})
    return prefix


@pytest.fixture(scope="module")
def automata(tmp_path_factory, frames) -> Path:
    return write(tmp_path_factory.mktemp("look") / "nca", frames, generator="made up", seed=7, law=to_dict(LAW),
                 rules=5, candidates_examined=20, candidates_accepted=5)


@pytest.fixture
def tool(monkeypatch, capsys):
    """Call the program in this process: its exit code is checked, (stdout, stderr) returned."""
    spec = importlib.util.spec_from_file_location("show_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["show_dataset.py", *map(str, words)])
        capsys.readouterr()
        assert module.run_tool(module.build_parser(), module.main) == code
        return capsys.readouterr()

    return call


def test_figures_of_a_made_up_dataset(automata, frames):
    dataset = Opened(automata)
    measured = quality.measure(dataset, 100)
    tokens = patches.encode(frames, 3, 2)
    assert (measured.measured, measured.duplicates) == (5, 1)
    assert measured.copy_accuracy == pytest.approx((tokens[:, 1:] == tokens[:, :-1]).mean())
    assert measured.copy_accuracy >= 0.2  # one sequence of five stands still
    assert measured.distinct_ids_a_sequence == np.mean([len(np.unique(row)) + 2 for row in tokens])
    assert measured.distinct_ids == len(np.unique(tokens)) + 2
    counts = np.bincount(patches.encode_sequence(frames, 3, 2).reshape(-1))
    shares = counts[counts > 0] / counts.sum()
    assert measured.entropy_nats == pytest.approx(-(shares * np.log(shares)).sum())
    assert measured.ratios.shape == (5,) and measured.ratios[1] == measured.ratios[3] > measured.ratios[4]
    assert measured.in_band == ((measured.ratios > 0.1) & (measured.ratios < 1.0)).mean()
    lines = dict(quality.lines(dataset, measured))
    assert lines["acceptance"] == "5 of 20 candidates, 25.0%" and lines["duplicates"] == "1 (20.00%)"
    assert quality.measure(dataset, 3).duplicates == 0


def test_merged_automata_have_the_law_that_all_have(tool, automata, frames, tmp_path):
    other = write(tmp_path / "other", frames[::-1], law=to_dict(LAW), candidates_examined=3)
    assert "acceptance" not in tool(other).out
    merge([automata, other], tmp_path / "all")
    merge([tmp_path / "all", write(tmp_path / "third", frames[:3], law=to_dict(LAW))], tmp_path / "more")
    dataset = Opened(tmp_path / "more")
    assert dataset.law == LAW and quality.measure(dataset, 10).in_band is not None
    np.testing.assert_array_equal(dataset.grids(5), frames[4])
    assert "made by                      merging 2 datasets\n" in tool(tmp_path / "more").out
    high = write(tmp_path / "high", frames[:2], law=to_dict(LAW) | {"band": [0.5, 1.0]})
    merge([tmp_path / "all", high], tmp_path / "both")
    assert Opened(tmp_path / "both").law is None
    assert "merging 2 datasets of several laws" in tool(tmp_path / "both").out


def test_a_frame_that_is_cut_counts_as_far_as_training_reads(tmp_path, frames):
    law = NcaLaw(**{**to_dict(LAW), "sequence_length": 28, "band": (0.1, 1.0)})
    with IndexedWriter(tmp_path / "nca", law.num_tokens, Trajectory.of_law(law)) as writer:
        writer.add_documents(patches.encode_sequence(frames, 3, 2))
        writer.finish({"kind": "nca", "vocab_size": 83, "origin": {"law": to_dict(law)}})
    dataset = Opened(tmp_path / "nca")
    tokens = patches.encode(frames, 3, 2)
    equal = (tokens[:, 1:] == tokens[:, :-1]).reshape(5, -1)[:, : 6 + 6 + 4]
    assert quality.measure(dataset, 5).copy_accuracy == pytest.approx(equal.mean())
    assert dataset.grids(0).shape == (3, 4, 6)


def read_png(path: Path) -> np.ndarray:
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return np.rint(image.imread(path)[..., :3] * 255).astype(np.uint8)


def cells_at(pixels: np.ndarray, place: tuple[int, int], height: int, width: int) -> np.ndarray:
    """States read back from the colours of a frame; every cell is one colour all over."""
    size = picture.CELL
    region = pixels[place[0] : place[0] + height * size, place[1] : place[1] + width * size]
    tiles = region.reshape(height, size, width, size, 3)
    assert (tiles == tiles[:, :1, :, :1]).all()
    colors = np.concatenate([picture.STATE_COLORS, picture.DELIMITER_COLOR[None]])
    equal = (tiles[:, 0, :, 0, None] == colors).all(axis=-1)
    assert equal.any(axis=-1).all()
    return equal.argmax(axis=-1)


def test_the_picture_holds_the_frames_pixel_for_pixel(automata, frames, tmp_path):
    words = [automata, f"{automata}.bin", "--sequences", 4, 0, "--picture", tmp_path / "out.png"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    result = subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr
    pixels = read_png(tmp_path / "out.png")
    canvas, places, _ = picture.compose([(Opened(automata), [4, 0])] * 2)
    assert pixels.shape == canvas.shape
    assert set(places) == {(which, number, frame) for which in (0, 1) for number in (0, 4) for frame in range(4)}
    for (_, number, frame), place in places.items():
        np.testing.assert_array_equal(cells_at(pixels, place, 4, 6), frames[number, frame])
    assert (pixels[: picture.MARGIN] == 255).all()
    assert (pixels[places[0, 4, 0][0] : places[0, 4, 0][0] + 16, : picture.MARGIN + picture.NUMBERS] < 128).any()


def test_delimiters_among_patches_are_grey(automata, tmp_path):
    generate(ShuffledSource(automata, None, 3), tmp_path / "shuffled")
    dataset = Opened(tmp_path / "shuffled")
    canvas, places, labels = picture.compose([(dataset, range(5))])
    found = np.stack([cells_at(canvas, places[0, 0, frame], 4, 6) for frame in range(4)])
    np.testing.assert_array_equal(np.where(found == len(picture.STATE_COLORS), -1, found), dataset.grids(0))
    tokens = dataset.sequence(0).reshape(4, 8)[:, 1:-1]
    assert (dataset.grids(0) == -1).sum() == 4 * (tokens >= 81).sum() > 0
    assert next(iter(labels.values())) == f"{tmp_path.name}/shuffled: shuffled, 3 states, band 0.1 to 1"
    assert "." in decoding.decode(dataset, 0)


def test_decoded_grids(tool, automata, frames):
    said = tool(automata, "--decode", 2).out
    blocks = said.strip().split("\n\n")
    assert len(blocks) == 4
    for frame, block in enumerate(blocks):
        head, *rows = block.split("\n")
        assert head == f"frame {frame}"
        np.testing.assert_array_equal([[int(cell, 16) for cell in row] for row in rows], frames[2, frame])


def test_brackets_are_shown(tool, tmp_path):
    generate(DyckSource(DyckLaw(symbols=3), 6, 1, 20), tmp_path / "dyck")
    said = tool(tmp_path / "dyck", "--picture", tmp_path / "dyck.png").out
    assert "dyck, 6 ids" in said and "copying" not in said
    assert read_png(tmp_path / "dyck.png").size
    words = decoding.decode(Opened(tmp_path / "dyck"), 0).split()
    assert len(words) == 21 and words[0].startswith("(") and f"{words[0][1:]})" in words


def test_text_is_decoded_by_its_own_tokenizer(tool, tmp_path):
    texts = [f"def f{i}(x):\n\treturn x  + {i}\n" * 9 for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model, other = tmp_path / "tok.model", tmp_path / "other.model"
    tokenizer.save(tokenizer.train(tmp_path / "a.jsonl", 300)[0], tmp_path / "tok")
    chosen = TokenizerFiles(type=SENTENCEPIECE, model=model)
    preprocess(Preprocessing(inputs=recognise([tmp_path / "a.jsonl"]), tokenizer=chosen), tmp_path / "out")
    corpus = tmp_path / "out_text_document"
    generate(CorpusCopySource(corpus, 9, 1, 64), tmp_path / "copy")
    assert decoding.decode(Opened(corpus), 0, model).startswith("def f0(x):\n\treturn x  + 0\n")
    assert "return x" in tool(tmp_path / "copy", "--decode", 8, "--tokenizer-model", model).out
    preprocess(Preprocessing(inputs=recognise([tmp_path / "a.jsonl"]), tokenizer=chosen, append_eod=False),
               tmp_path / "open")
    merge([corpus, tmp_path / "open_text_document"], tmp_path / "merged")
    assert "return x" in tool(tmp_path / "merged", "--decode", 0, "--tokenizer-model", model).out
    assert decoding.decode(Opened(corpus), 0).split()[0].isdigit()
    other.write_bytes(tokenizer.train(tmp_path / "a.jsonl", 290)[0])
    with pytest.raises(DataError, match="was made with another tokenizer"):
        decoding.decode(Opened(corpus), 0, other)
    said = tool(corpus, "--report", tmp_path / "report")
    assert "kind" not in said.err and "\n  documents  " in said.out and "\n  sequences  " not in said.out
    assert "stretches of 1,024 tokens" in said.out
    assert read_png(tmp_path / "report" / "gzip_ratios.png").size


def test_the_report_of_the_released_law(tool, tmp_path):
    """The paper's facts: 94.9 % of rules stay in the band, copying is 1.07 % right, 438 distinct tokens a sequence."""
    generate(NcaSource(NcaLaw(), 300, 1), tmp_path / "nca")
    said = tool(tmp_path / "nca", "--report", tmp_path / "report", "--limit", 200).out
    assert "the first 200 sequences" in said and "candidates" in said and "10 states, band 0.5 to 1" in said
    measured = quality.measure(Opened(tmp_path / "nca"), 300)
    assert 0.90 < measured.in_band < 0.99 and 0.005 < measured.copy_accuracy < 0.02
    assert 400 < measured.distinct_ids_a_sequence < 480 and measured.duplicates == 0
    report = (tmp_path / "report" / "quality.md").read_text()
    assert "| distinct rules | 300 |" in report and "![gzip ratios](gzip_ratios.png)" in report
    assert read_png(tmp_path / "report" / "gzip_ratios.png").std() > 0
    tool(tmp_path / "nca", "--report", tmp_path / "report")
    (tmp_path / "report" / "notes.txt").write_text("mine")
    assert "holds notes.txt" in tool(tmp_path / "nca", "--report", tmp_path / "report", code=2).err
    assert len(list((tmp_path / "report").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sequences", 5, "--picture", "{folder}/x.png"], "sequence = 5: .* holds 0..4"),
        (["--decode", -1], "sequence = -1"),
        (["--decode", 0, "--tokenizer-model", "none"], "none: cannot be read"),
        (["{nca}", "--decode", 0], "--decode: several datasets"),
        (["--tokenizer-model", "none"], "belongs to --decode"),
        (["--decode", 0, "--report", "{folder}/new"], "--decode = 0: prints text .* --report"),
        (["--document", 0, "--picture", "{folder}/x.png"], "--document = 0: prints text .* --picture"),
        (["--document", 0, "--decode", 1], "--document = 0: prints text .* --decode"),
        (["--limit", 0], "--limit = 0"),
        (["--sequences", 0], "belongs to --picture"),
        (["--picture", "{folder}/x.txt"], "--picture = .*x.txt': is no name of a PNG"),
        (["--sequences", *[0] * 3000, "--picture", "{folder}/x.png"], "sequences = 3000: make a picture 60,0"),
        (["--report", "{folder}"], "exists and is no report"),
        (["--report", "{folder}/file"], "exists and is no report"),
        (["{folder}/none"], "none.json: is missing"),
    ],
)
def test_one_message_for_bad_input(tool, automata, tmp_path, words, message):
    (tmp_path / "file").write_text("")
    places = {"folder": tmp_path, "nca": automata}
    said = tool(automata, *(str(word).format(**places) for word in words), code=2).err
    assert said.count("\n") == 1 and said.startswith("show_dataset.py: ") and "Cure:" in said
    assert re.search(message, said), said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
