"""Hugging Face folders of Llama models: the same bits there and back, the same logits at several layouts."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import sentencepiece
import torch
from test_interop import launch

from megatron_nca.__main__ import main
from megatron_nca.convert import formats, hf
from megatron_nca.errors import CheckpointError

transformers = pytest.importorskip("transformers")

SHAPE = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
         "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
MODELS = {
    "grouped": {"num_key_value_heads": 2, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "tied": {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
}
ALL_LAYOUTS = {"tp1": {"data": 4}, "tp2": {"tensor": 2, "data": 2}, "tp2pp2": {"tensor": 2, "pipeline": 2}}
LAYOUTS = {"grouped": ALL_LAYOUTS, "tied": {"tp2pp2": ALL_LAYOUTS["tp2pp2"]}}
"""Where the head is tied, its weight lies on the first and on the last stage."""


def make(folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", **settings: object) -> Path:
    """A folder as transformers writes it, every weight random, norms too."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, **settings}))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, read by the library."""
    return dict(item for path in folder.glob("*.safetensors") for item in safetensors.torch.load_file(path).items())


def convert(target: str, source: Path, to: Path, *words: object) -> Path:
    assert main(["convert", "format", target, "--from", str(source), "--to", str(to), *map(str, words)]) == 0
    return to


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not formats.same_bits(one[name], other[name])] == []


HEADS = ({}, {"num_key_value_heads": 2})
ROPES = (None, LLAMA3, {"rope_type": "linear", "factor": 2.5})


@pytest.mark.parametrize(("heads", "tied", "rope", "dtype"), [
    (HEADS[i % 2], i // 2 % 2 == 1, ROPES[i % 3], dtype)
    for i, dtype in zip(range(6), itertools.cycle([torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]))
])  # fmt: skip
def test_there_and_back_every_bit(tmp_path: Path, heads: dict, tied: bool, rope: dict | None, dtype: torch.dtype):
    first = make(tmp_path / "hf", dtype, tie_word_embeddings=tied, rope_scaling=rope, **heads)
    ours = convert("megatron-nca", first, tmp_path / "ours", "--verify")
    again = convert("hf", ours, tmp_path / "again", "--verify")
    assert_same(stored(again), stored(first))
    before, after = (transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in (first, again))
    special = {"bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "transformers_version"}
    assert {key: before[key] for key in before.keys() - special} == {key: after[key] for key in after.keys() - special}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of transformers, converted and computed by Megatron at several layouts, on the same tokens."""
    folder = tmp_path_factory.mktemp("logits")
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, SHAPE["max_position_embeddings"]))
    np.save(folder / "tokens.npy", tokens)
    jobs = []
    for name, settings in MODELS.items():
        make(folder / name, **settings)
        ours = convert("megatron-nca", folder / name, folder / f"{name}-ours")
        jobs += [
            {"layout": layout, "precision": "fp32", "load": ours, "tokens": folder / "tokens.npy",
             "logits": folder / f"{name}-{layout_name}.npy"}
            for layout_name, layout in LAYOUTS[name].items()
        ]  # fmt: skip
    launch(folder, 4, jobs)
    return folder


def by_transformers(folder: Path, tokens: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_logits_at_every_layout(computed: Path, name: str):
    expected = by_transformers(computed / name, np.load(computed / "tokens.npy"))
    assert np.abs(expected).max() > 0.5
    for layout in LAYOUTS[name]:
        found = np.load(computed / f"{name}-{layout}.npy")
        assert found.shape == (*expected.shape[:2], 384)
        difference = np.abs(found[..., :300] - expected).max()
        print(f"{name} at {layout}: {difference:.2e} of {np.abs(expected).max():.2f}")
        assert difference < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_what_is_written(computed: Path, tmp_path: Path, name: str):
    tokens = np.load(computed / "tokens.npy")
    written = convert("hf", computed / f"{name}-ours", tmp_path / "hf", "--shard-bytes", 100_000)
    assert len(list(written.glob("model-*-of-*.safetensors"))) > 3
    assert (by_transformers(written, tokens) == by_transformers(computed / name, tokens)).all()
    index = json.loads((written / "model.safetensors.index.json").read_text())
    sizes = [sum(tensor.nbytes for tensor in safetensors.torch.load_file(path).values())
             for path in written.glob("*.safetensors")]  # fmt: skip
    assert max(sizes) <= 100_000
    assert index["metadata"]["total_size"] == sum(sizes)
    assert_same(stored(written), stored(computed / name))


def test_shards_of_transformers_are_read(tmp_path: Path):
    first = make(tmp_path / "hf", shard="100KB")
    assert (first / "model.safetensors.index.json").is_file()
    assert_same(stored(convert("hf", first, tmp_path / "again")), stored(first))


def test_version_5_configurations_are_read(tmp_path: Path):
    folder = make(tmp_path / "hf", rope_theta=500000.0, rope_scaling=LLAMA3)
    expected = hf.read(folder).model
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), **config.pop("rope_scaling")}
    config["dtype"] = config.pop("dtype", "float32")
    (folder / "config.json").write_text(json.dumps(config))
    assert hf.read(folder).model == expected
    assert (expected.rope_base, expected.rope_scaling.kind) == (500000, "llama3")


def test_padding_is_added_as_zeros_and_cut_off(tmp_path: Path):
    folder = make(tmp_path / "hf")
    embedding = hf.read(folder).tensor("embedding.weight").read()
    assert embedding.shape == (384, 64)
    assert (embedding[300:] == 0).all()
    assert (embedding[:300] == stored(folder)["model.embed_tokens.weight"]).all()


def test_a_copy_of_the_tied_head_is_left_aside(tmp_path: Path):
    folder = make(tmp_path / "hf", tie_word_embeddings=True)
    tensors = stored(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    assert [item.key for item in hf.read(folder).ignored] == ["lm_head.weight"]
    tensors["lm_head.weight"][299, 63] += 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight is not model.embed_tokens.weight"):
        hf.read(folder)


def test_a_sentencepiece_model_goes_with_the_weights(tmp_path: Path, trained: Path):
    tokenizer = train_tokenizer(tmp_path, 280)
    folder = convert("hf", make(tmp_path / "hf"), tmp_path / "out", "--tokenizer", tokenizer)
    mine = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    text = "def f(x):\n\tif x:  # two  spaces\n\t\treturn 'é中😀'\n"
    for fast in (True, False):
        theirs = transformers.AutoTokenizer.from_pretrained(folder, use_fast=fast)
        assert theirs.encode(text) == mine.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == theirs.eos_token_id == 1
    again = convert("hf", folder, tmp_path / "again", "--tokenizer", folder)
    assert (again / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    assert (again / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def train_tokenizer(folder: Path, size: int) -> Path:
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["def f(x): return x", "if x: pass"]), model_writer=file, model_type="bpe",
            vocab_size=size, normalization_rule_name="identity", add_dummy_prefix=False, byte_fallback=True,
            remove_extra_whitespaces=False, unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    return folder / "tokenizer.model"
