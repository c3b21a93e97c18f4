"""The reader and writer of torch_dist checkpoints, without Megatron."""

import io
import itertools
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_checkpoints import Bomb, write_random
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_nca.convert import megatron
from megatron_nca.errors import CheckpointError
from megatron_nca.mcore import tensor_archive, torch_dist
from megatron_nca.mcore.torch_dist import Chunk, StoredTensor, TorchDistReader, write_checkpoint


def split(values: np.ndarray, cuts: list[list[int]]) -> tuple[Chunk, ...]:
    """`values` as chunks between the `cuts` of each axis."""
    boxes: list[tuple] = [()]
    for size, points in zip(values.shape, cuts, strict=True):
        edges = [0, *sorted(set(points)), size]
        boxes = [(*box, slice(a, b)) for box in boxes for a, b in itertools.pairwise(edges)]
    tensor = torch.from_numpy(values)
    return tuple(Chunk(tuple(s.start for s in box), values[box].shape,
                       lambda box=box: tensor[box].flatten().contiguous().split(max(5, tensor.numel() // 3)))
                 for box in boxes)


def write(folder: Path, values: np.ndarray, cuts: list[list[int]]) -> TorchDistReader:
    write_checkpoint(folder, [StoredTensor("key", values.shape, torch.float32, split(values, cuts))], {})
    return TorchDistReader(folder)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_any_chunking_is_assembled(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, shape: list[int]):
    cuts = [data.draw(st.lists(st.integers(1, size - 1), max_size=3)) if size > 1 else [] for size in shape]
    values = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    reader = write(tmp_path_factory.mktemp("chunks") / "c", values, cuts)
    assert reader.table == {"key": (tuple(shape), "float32")}
    assert (reader.read("key").numpy() == values).all()
    for layer in range(shape[0]):
        assert (reader.read("key", layer).numpy() == values[layer]).all()
        assert (torch.cat(list(reader.in_blocks("key", layer))).numpy() == values[layer].reshape(-1)).all()
    assert (torch.cat(list(reader.in_blocks("key"))).numpy() == values.reshape(-1)).all()


def test_a_layer_reads_only_its_own_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader = write(tmp_path / "c", np.zeros((4, 6, 2), np.float32), [[1, 2, 3], [3], []])
    loads = []
    monkeypatch.setattr(
        torch_dist.torch, "load", lambda *args, load=torch.load, **kw: loads.append(1) or load(*args, **kw)
    )
    reader.read("key", 2)
    assert len(loads) == 2


def test_torch_reads_what_is_written(tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    write(tmp_path / "c", values, [[1], [2]])
    state = {"key": torch.empty(3, 5)}
    dcp.load(state, checkpoint_id=tmp_path / "c", no_dist=True)
    assert (state["key"].numpy() == values).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_torch_writes_is_read(tmp_path: Path, dtype: torch.dtype):
    tensor = torch.randn(7, 3).to(dtype)
    dcp.save({"key": tensor, "note": "text"}, checkpoint_id=tmp_path / "c", no_dist=True)
    reader = TorchDistReader(tmp_path / "c")
    assert reader.table["key"] == ((7, 3), str(dtype).removeprefix("torch."))
    assert reader.objects == ("note",)
    assert torch.equal(reader.read("key"), tensor)


def test_same_tensors_same_bytes(tmp_path: Path):
    one, other = write_random(tmp_path / "one"), write_random(tmp_path / "other")
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_holes_are_refused(tmp_path: Path):
    values = np.zeros((4, 4), np.float32)
    write_checkpoint(tmp_path / "c", [StoredTensor("key", (4, 4), torch.float32, split(values, [[2], []])[:1])], {})
    with pytest.raises(CheckpointError, match="cover 8 of 16"):
        TorchDistReader(tmp_path / "c").read("key")


def test_code_in_the_table_is_refused(tmp_path: Path, trained: Path):
    mark = tmp_path / "mark"
    (trained / ".metadata").write_bytes(pickle.dumps({"table": Bomb(mark)}))
    with pytest.raises(CheckpointError, match=r"io\.open, which is no part"):
        TorchDistReader(trained)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch.hub.load", "pathlib.os"])
def test_only_known_classes_are_found(trained: Path, name: str):
    module, _, attribute = name.rpartition(".")
    (trained / ".metadata").write_bytes(b"c" + f"{module}\n{attribute}\n".encode() + b".")
    with pytest.raises(CheckpointError, match="could run code"):
        TorchDistReader(trained)


@pytest.mark.parametrize("name", ["torch.distributed.checkpoint.metadata\nos.system", "torch\n_C.Size"])
def test_dotted_names_do_not_leave_a_known_module(trained: Path, name: str):
    module, attribute = (text.encode() for text in name.split("\n"))
    short = b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(attribute)]) + attribute
    (trained / ".metadata").write_bytes(b"\x80\x04" + short + b"\x93.")
    with pytest.raises(CheckpointError, match="could run code"):
        TorchDistReader(trained)


def test_code_in_a_chunk_is_refused(tmp_path: Path, trained: Path):
    mark = tmp_path / "mark"
    metadata = dcp.FileSystemReader(trained).read_metadata()
    index = next(iter(metadata.storage_data))
    torch.save(Bomb(mark), trained / "__9_0.distcp")
    metadata.storage_data[index].relative_path = "__9_0.distcp"
    metadata.storage_data[index].offset = 0
    metadata.storage_data[index].length = (trained / "__9_0.distcp").stat().st_size
    (trained / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="damaged"):
        TorchDistReader(trained).read(index.fqn)
    assert not mark.exists()


@pytest.mark.parametrize("path", ["../outside.distcp", "/etc/passwd", "sub/x.distcp", ""])
def test_files_outside_the_checkpoint_are_refused(trained: Path, path: str):
    metadata = dcp.FileSystemReader(trained).read_metadata()
    next(iter(metadata.storage_data.values())).relative_path = path
    (trained / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError):
        TorchDistReader(trained)


def damage_truncate(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-100])


def damage_remove_data(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()


def damage_remove_table(folder: Path) -> None:
    (folder / ".metadata").unlink()


def damage_cut_table(folder: Path) -> None:
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes()[:-50])


def damage_empty_table(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"")


def damage_other_object(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps([1, 2]))


def damage_storage(folder: Path) -> None:
    metadata = dcp.FileSystemReader(folder).read_metadata()
    metadata.storage_data = {MetadataIndex(i.fqn, i.offset): 5 for i in metadata.storage_data}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def damage_attribute(folder: Path) -> None:
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes().replace(b"sizes", b"sixes"))


@pytest.mark.parametrize("damage", [value for name, value in sorted(globals().items()) if name.startswith("damage_")])
def test_damage_is_found_when_a_checkpoint_is_opened(trained: Path, damage: Callable):
    damage(trained)
    with pytest.raises(CheckpointError, match="Cure"):
        TorchDistReader(trained)


def test_a_damaged_number_of_layers_is_found_at_once(trained: Path):
    metadata = dcp.FileSystemReader(trained).read_metadata()
    entry = metadata.state_dict_metadata[megatron.LAYER_KEYS["mlp.fc2.weight"]]
    entry.size = torch.Size([2**40, *entry.size[1:]])
    (trained / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="cover 4608 of "):
        megatron.read(trained)


def test_sums_can_be_absent(tmp_path: Path):
    try:
        torch.serialization.set_crc32_options(False)
        folder = write_random(tmp_path / "c")
    finally:
        torch.serialization.set_crc32_options(True)
    assert TorchDistReader(folder).read("output_layer.weight").shape == (256, 32)


def test_a_zeroed_chunk_is_found_when_it_is_read(trained: Path):
    path = trained / "__0_0.distcp"
    path.write_bytes(bytes(path.stat().st_size))
    reader = TorchDistReader(trained)
    with pytest.raises(CheckpointError, match="damaged"):
        reader.read("decoder.final_layernorm.weight")


def test_a_flipped_bit_is_found_when_it_is_read(trained: Path):
    place = dcp.FileSystemReader(trained).read_metadata().storage_data[MetadataIndex("output_layer.weight", (0, 0))]
    path = trained / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[place.offset + place.length // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        TorchDistReader(trained).read("output_layer.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (700, 1024)])
def test_an_archive_is_one_of_torch(tmp_path: Path, dtype: torch.dtype, shape: tuple):
    """Also of more than one block, and behind other bytes of a file."""
    tensor = torch.randn(shape).to(dtype)
    with open(tmp_path / "file", "wb") as file:
        file.write(b"before")
        tensor_archive.write(tensor.shape, dtype, iter(tensor.reshape(-1).split(10_007)), file)
    alone = (tmp_path / "file").read_bytes()[6:]
    with zipfile.ZipFile(io.BytesIO(alone)) as archive:
        assert archive.testzip() is None
    theirs = io.BytesIO()
    torch.save(tensor, theirs)
    (tmp_path / "theirs").write_bytes(theirs.getvalue())
    with open(tmp_path / "file", "rb", buffering=0) as ours, open(tmp_path / "theirs", "rb", buffering=0) as other:
        found = [torch.load(io.BytesIO(alone), weights_only=True), tensor_archive.read(ours, 6, len(alone), "ours"),
                 tensor_archive.read(other, 0, len(theirs.getvalue()), "theirs")]  # fmt: skip
        blocks = [tensor_archive.in_blocks(ours, 6, len(alone), tensor.shape, dtype),
                  tensor_archive.in_blocks(other, 0, len(theirs.getvalue()), tensor.shape, dtype)]
        assert tensor_archive.in_blocks(ours, 6, len(alone), torch.Size((7, *shape)), dtype) is None
        found += [torch.cat(list(each)).view(shape) for each in blocks if each is not None]
    assert len(found) == (5 if tensor.numel() else 3)
    assert all(torch.equal(each, tensor) and each.dtype == dtype for each in found)


def test_a_flipped_bit_of_a_large_tensor_is_found(tmp_path: Path):
    values = np.zeros((3, 1 << 20), np.float32)
    reader = write(tmp_path / "c", values, [[], []])
    data = bytearray((tmp_path / "c" / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "c" / "__0_0.distcp").write_bytes(data)
    for read in (reader.read, lambda key: list(reader.in_blocks(key))):
        with pytest.raises(CheckpointError, match="Bad CRC-32"):
            read("key")
