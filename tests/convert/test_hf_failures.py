"""Hugging Face folders that are refused, and what is left of a conversion that fails or is killed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_checkpoints import CONFIG, random_checkpoint, values

from megatron_nca.__main__ import main
from megatron_nca.convert import hf, safetensors_file
from megatron_nca.errors import CheckpointError

FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of CONFIG, in one file."""
    hf.write(tmp_path / "hf", random_checkpoint())
    return tmp_path / "hf"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    hf.write(tmp_path / "sharded", random_checkpoint(), shard_bytes=50_000)
    return tmp_path / "sharded"


def header(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def rewrite(path: Path, change: Callable[[dict], object], text: Callable[[str], str] = str) -> None:
    """Change the header of a safetensors file; the numbers stay."""
    entries, numbers = header(path)
    change(entries)
    new = text(json.dumps(entries)).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + numbers)


def set_offsets(entries: dict, name: str, first: int, last: int) -> None:
    entries[name]["data_offsets"] = [entries[name]["data_offsets"][0] + first, entries[name]["data_offsets"][1] + last]


NORM = "model.layers.1.input_layernorm.weight"
HEADERS = {
    "overlap": (lambda e: set_offsets(e, NORM, -4, -4), "overlap or leave a gap"),
    "gap": (lambda e: set_offsets(e, NORM, 4, 4), "overlap or leave a gap"),
    "out of range": (lambda e: set_offsets(e, "lm_head.weight", 10**9, 10**9), "overlap or leave a gap"),
    "too long": (lambda e: set_offsets(e, "lm_head.weight", 0, 128) or e["lm_head.weight"].update(shape=[201, 32]),
                 "truncated or longer"),
    "other size": (lambda e: e[NORM].update(shape=[31]), f"{NORM} of shape (31,) and type F32 has 128 bytes"),
    "negative": (lambda e: e[NORM].update(shape=[-1, -32]), "no lists of sizes"),
    "unknown type": (lambda e: e[NORM].update(dtype="F33"), "unknown type 'F33'"),
    "no type": (lambda e: e[NORM].pop("dtype"), "is not dtype, shape and data_offsets"),
}  # fmt: skip


@pytest.mark.parametrize("damage", HEADERS)
def test_damaged_headers_are_refused_here_and_by_the_library(folder: Path, damage: str):
    change, message = HEADERS[damage]
    rewrite(folder / FILE, change)
    with pytest.raises(CheckpointError) as caught:
        hf.read(folder)
    assert message in str(caught.value)
    with pytest.raises((safetensors.SafetensorError, OverflowError, ValueError)):
        safetensors.torch.load_file(folder / FILE)


FILES = {
    "repeated name": (lambda d: d.replace(b'"lm_head.weight"', b'"model.norm.weight"'), "model.norm.weight twice"),
    "cut": (lambda d: d[:-1], "truncated or longer"),
    "longer": (lambda d: d + b"x", "truncated or longer"),
    "empty": (lambda d: b"", "it has 0 bytes"),
    "long header": (lambda d: b"\xff" * 8 + d[8:], "its header would have"),
    "no object": (lambda d: d[:8] + b"[" + d[9:], "is no JSON object"),
    "a pickle": (lambda d: b"\x80\x04" * 100, "its header would have"),
    "deep": (lambda d: (200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995 + d, "is damaged"),
}


@pytest.mark.parametrize("damage", FILES)
def test_damaged_files_are_refused(folder: Path, damage: str):
    change, message = FILES[damage]
    (folder / FILE).write_bytes(change((folder / FILE).read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        hf.read(folder)
    assert message in str(caught.value)


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return apply


def config(**changes: object) -> Callable[[Path], None]:
    return edit("config.json", lambda values: values.update(changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (config(vocab_size=201), "model.embed_tokens.weight has shape (200, 32), expected (201, 32)"),
        (config(num_hidden_layers=2), "model.layers.2.input_layernorm.weight is not a tensor of this model"),
        (config(num_hidden_layers=4), "model.layers.3.self_attn.q_proj.weight is missing"),
        (config(num_key_value_heads=4), "model.layers.0.self_attn.k_proj.weight has shape (16, 32), expected (32, 32)"),
        (config(num_key_value_heads=3), "does not divide num_heads"),
        (config(tie_word_embeddings=True), "lm_head.weight is not model.embed_tokens.weight"),
        (config(head_dim=16), "head_dim = 16: 4 heads of it do not make up hidden_size 32"),
        (config(attention_bias=True), "attention_bias = True"),
        (config(mlp_bias=True), "mlp_bias = True"),
        (config(hidden_act="gelu"), "hidden_act = 'gelu'"),
        (config(quantization_config={"bits": 4}), "quantization_config = {'bits': 4}"),
        (config(model_type="qwen3"), "model_type = 'qwen3'"),
        (config(hidden_size="32"), "hidden_size = '32': is not a positive whole number"),
        (config(rms_norm_eps=0), "rms_norm_eps = 0: is not a positive number"),
        (config(rope_theta=10000.5), "rope_theta = 10000.5: only whole numbers"),
        (config(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope_type = 'yarn'"),
        (config(rope_scaling={"rope_type": "llama3", "factor": 2.0}), "rope_scaling.low_freq_factor is missing"),
        (config(rope_parameters={"rope_theta": 5.0}), "rope_theta is 5.0 and 10000.0"),
        (lambda f: (f / "config.json").write_text("{"), "is no JSON object"),
        (lambda f: (f / "config.json").unlink(), "cannot be read"),
        (lambda f: (f / FILE).rename(f / "pytorch_model.bin"), "pickles are not read"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder: Path, damage: Callable, message: str):
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        hf.read(folder)
    assert message in str(caught.value)
    assert "Cure: " in str(caught.value)


def one_shard(folder: Path) -> Path:
    return folder / "model-00002-of-00004.safetensors"


def place(file: str) -> Callable[[Path], None]:
    return edit(hf.INDEX_FILE, lambda values: values["weight_map"].update({NORM: file}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: one_shard(f).unlink(), "model-00002-of-00004.safetensors: cannot be read (No such file"),
        (lambda f: one_shard(f).write_bytes(one_shard(f).read_bytes()[:-9]), "00002-of-00004.safetensors: is damaged"),
        (place("../outside.safetensors"), "names '../outside.safetensors', which is no safetensors file inside"),
        (place("/etc/x.safetensors"), "which is no safetensors file inside"),
        (place("model.bin"), "names 'model.bin', which is no safetensors file inside"),
        (place("model-00001-of-00004.safetensors"), "which the index does not look for there"),
        (edit(hf.INDEX_FILE, lambda v: v["weight_map"].pop(NORM)), "which the index does not look for there"),
        (edit(hf.INDEX_FILE, lambda v: v["weight_map"].update(x="model-00001-of-00004.safetensors")), "lacks x"),
        (edit(hf.INDEX_FILE, lambda v: v.pop("weight_map")), "has no weight_map"),
        (lambda f: (f / FILE).touch(), f"has both {FILE} and"),
    ],
)
def test_shards_that_do_not_fit_are_refused(sharded: Path, damage: Callable, message: str):
    assert len(list(sharded.glob("*.safetensors"))) == 4
    assert hf.read(sharded).model == hf.read(sharded).model
    damage(sharded)
    with pytest.raises(CheckpointError) as caught:
        hf.read(sharded)
    assert message in str(caught.value)


def test_other_types_are_refused(folder: Path):
    tensors = safetensors.torch.load_file(folder / FILE)
    safetensors.torch.save_file({**tensors, NORM: tensors[NORM].double()}, folder / FILE)
    with pytest.raises(CheckpointError, match=f"{NORM} is stored as F64, expected one of float32"):
        hf.read(folder)
    mixed = {**tensors, "model.layers.0.self_attn.q_proj.weight": torch.zeros(32, 32, dtype=torch.bfloat16)}
    safetensors.torch.save_file(mixed, folder / FILE)
    with pytest.raises(CheckpointError, match=r"q_proj.weight as bfloat16.*become one tensor, and one type is needed"):
        hf.read(folder)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
                          st.lists(st.integers(0, 5), max_size=3)), max_size=6))  # fmt: skip
def test_the_library_and_this_read_each_others_files(tmp_path_factory: pytest.TempPathFactory, kinds: list):
    folder = tmp_path_factory.mktemp("files")
    tensors = {f"t{i}": torch.randn(shape).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    safetensors.torch.save_file(tensors, folder / "theirs.safetensors")
    table = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}
    numbers = ((name, 0, t.reshape(-1)) for name, t in tensors.items())
    safetensors_file.write(folder / "ours.safetensors", table, numbers)
    found = {name: e.read() for name, e in safetensors_file.read_header(folder / "theirs.safetensors").items()}
    for other in (found, safetensors.torch.load_file(folder / "ours.safetensors")):
        assert other.keys() == tensors.keys()
        assert all(torch.equal(other[name], t) and other[name].dtype == t.dtype for name, t in tensors.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TRAINED"], "holds none of tokenizer.json"),
        (["MISSING"], "cannot be read"),
        (["LARGE"], "has 1,000 tokens, the model 200"),
        (["CODE"], "asks for code of its own"),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path, trained: Path, capsys, words: list, message: str):
    places = {"TRAINED": trained, "MISSING": tmp_path / "missing.model"}
    for name, size, settings_ in (("LARGE", 1000, {}), ("CODE", 9, {"auto_map": {"AutoTokenizer": "x.py"}})):
        places[name] = tmp_path / name
        places[name].mkdir()
        vocabulary = {f"t{i}": i for i in range(size)}
        (places[name] / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        (places[name] / "tokenizer_config.json").write_text(json.dumps(settings_))
    command = ["convert", "format", "hf", "--from", str(trained), "--to", str(tmp_path / "new"), "--tokenizer"]
    assert main([*command, str(places[words[0]])]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


WRITES = ("model-00001", "model-00003", "index", "config.json", "account.json")


@pytest.mark.parametrize("place", WRITES)
def test_a_failure_at_any_write_leaves_nothing(tmp_path: Path, trained: Path, place: str, monkeypatch):
    """The write of one file fails as on a full disk; the same call then makes the folder."""
    command = ["convert", "format", "hf", "--from", str(trained), "--to", str(tmp_path / "new")]
    command += ["--shard-bytes", "50000"]
    real = open

    def full(path: object, mode: str = "r", *rest: object, **named: object) -> object:
        if place in str(path) and "w" in mode:
            raise OSError(28, "No space left on device")
        return real(path, mode, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        patch.setattr("io.open", full)
        assert main(command) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]
    assert main(command) == 0


def test_a_killed_conversion_leaves_nothing_under_the_name(tmp_path: Path, trained: Path):
    command = ["convert", "format", "hf", "--from", str(trained), "--to", str(tmp_path / "new")]
    code = (
        "import sys, time\nfrom megatron_nca.__main__ import main\nfrom megatron_nca.convert import hf\n"
        "pieces = hf._pieces\nhf._pieces = lambda *args: time.sleep(0.5) or pieces(*args)\nmain(sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size > 20_000 for path in tmp_path.glob(f".new.*.tmp/{FILE}")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "new").exists()
    assert main(command) == 0
    expected = values(random_checkpoint())
    found = values(hf.read(tmp_path / "new"))
    assert all((found[name][:150] == expected[name][:150]).all() for name in expected)


def test_the_source_is_not_written(folder: Path, tmp_path: Path):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    command = ["convert", "format", "megatron-nca", "--from", str(folder), "--to"]
    assert main([*command, str(tmp_path / "ours")]) == 0
    assert main([*command, str(folder / "inside")]) == 2
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert hf.read(folder).model.vocab_size == CONFIG.vocab_size
