"""Token files to batches: automata through our own Megatron dataset, text through Megatron's GPTDataset.

An iteration's batch is a function of (seed, consumed sequences) alone, so a resume needs no loader state.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split

from megatron_nca.data.blend import Blend
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.order import training_order
from megatron_nca.data.pairs import mask_prefix
from megatron_nca.errors import DataError, explain

VALIDATION_SEED = 1234
SURPLUS = 0.005
"""Of sequences that each dataset of a blend holds ready above its share; Megatron's default."""
TEXT_BUCKETS = 8
"""Buckets of the loss by position where the data has no frames."""


class TrajectoryDataset(MegatronDataset):
    """One document, one sequence: whole frames in, shifted targets out, the first frame unscored.

    Training sequences come in a fresh order each epoch; validation sequences in file order.
    """

    def __len__(self) -> int:
        return self.num_samples or len(self.indices)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: BlendedMegatronDatasetConfig) -> IndexedReader:
        return IndexedReader(Path(dataset_path))

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: IndexedReader) -> int:
        return len(low_level_dataset)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        epoch, position = divmod(index, len(self.indices))
        document = self.indices[self._order(epoch)[position]]
        trajectory = self.config.trajectory
        document = self.dataset[int(document)]
        return {
            "tokens": trajectory.inputs(document),
            "labels": trajectory.targets(document),
            "loss_mask": trajectory.loss_mask(),
        }

    def _order(self, epoch: int) -> np.ndarray:
        """Order of the documents in `epoch`; only the latest is kept."""
        if getattr(self, "_ordered_epoch", None) != epoch:
            count = len(self.indices)
            shuffled = self.index_split is Split.train
            self._ordered = training_order(self.config.random_seed, epoch, count) if shuffled else np.arange(count)
            self._ordered_epoch = epoch
        return self._ordered


class AnswersOnly:
    """Text whose twin says which targets are scored. Both have the same lengths and seed, so Megatron cuts and orders
    them alike."""

    def __init__(self, text: GPTDataset, mask: GPTDataset) -> None:
        self._text, self._mask = text, mask

    def __len__(self) -> int:
        return len(self._text)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self._text[index]
        return {**sample, "loss_mask": sample["loss_mask"] * self._mask[index]["labels"]}


class Datasets:
    """Training and validation sequences of one phase, and the batches of this data-parallel rank."""

    def __init__(
        self,
        train: Blend,
        validation: Blend,
        sequence_length: int,
        seed: int,
        train_sequences: int,
        validation_sequences: int,
        cache: Path,
        vocab_size: int,
        in_the_making: bool = False,
    ) -> None:
        """`vocab_size` is the model's: data that holds other tokens is refused. `in_the_making`: training data whose
        files are there in full size but not yet filled, nor described by a manifest. Raises DataError."""
        held_out = validation.manifests()
        manifests = held_out if in_the_making else train.manifests()
        self.manifest = manifests[0]
        """Of the training data; of those in the making the kind, vocabulary and frames are known by validation's."""
        self.sequence_length = sequence_length
        for prefix, manifest in zip((*train.prefixes, *validation.prefixes), (*manifests, *held_out), strict=True):
            _check_matching(train.prefixes[0], self.manifest, prefix, manifest)
        _check_vocabulary(train.prefixes[0], self.manifest, vocab_size)
        _check_enough(validation, held_out, sequence_length, validation_sequences)
        self.train = _build(train, manifests, Split.train, train_sequences, sequence_length, seed, cache)
        # A seed of its own keeps the validation sequences the same for all seeds and arms.
        self.validation = _build(
            validation, held_out, Split.valid, validation_sequences, sequence_length, VALIDATION_SEED, cache
        )

    @property
    def _framed(self) -> bool:
        """Whether sequences consist of frames; those of brackets and of copied text are documents without."""
        return self.manifest.trajectory is not None and self.manifest.trajectory.num_frames > 1

    @property
    def bucket_tokens(self) -> int:
        """Width of a bucket in tokens."""
        return self.manifest.trajectory.frame_tokens if self._framed else self.sequence_length // TEXT_BUCKETS

    @property
    def buckets(self) -> np.ndarray:
        """Bucket of each target position, (L,): the frame of automata, an eighth of any other sequence."""
        if self._framed:
            return self.manifest.trajectory.frames()
        return np.arange(self.sequence_length) * TEXT_BUCKETS // self.sequence_length

    def train_batches(self, consumed: int, global_batch: int, micro_batch: int, device: torch.device) -> Iterator[dict]:
        """Micro-batches of the iteration that starts at `consumed` sequences, this rank's share in order."""
        return self._batches(self.train, consumed, global_batch, micro_batch, device)

    def validation_batches(self, sequences: int, micro_batch: int, device: torch.device) -> Iterator[dict]:
        """Micro-batches over the first `sequences` validation sequences, this rank's share in order."""
        return self._batches(self.validation, 0, sequences, micro_batch, device)

    def _batches(
        self, dataset: object, first: int, count: int, micro_batch: int, device: torch.device
    ) -> Iterator[dict]:
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        for start in range(first + rank * micro_batch, first + count, micro_batch * size):
            samples = [dataset[index] for index in range(start, start + micro_batch)]
            yield {key: _stack(samples, key, device) for key in ("tokens", "labels", "loss_mask")}


def _build(
    blend: Blend, manifests: list[Manifest], split: Split, sequences: int, sequence_length: int, seed: int, cache: Path
) -> MegatronDataset | BlendedDataset:
    blends, sizes = [None, None, None], [None, None, None]
    weights = list(blend.weights) if len(blend.weights) > 1 else None
    blends[split.value], sizes[split.value] = (list(map(str, blend.prefixes)), weights), sequences
    # The key of Megatron's index cache leaves out the content of the data, so the content names the folder.
    common = {
        "random_seed": seed,
        "sequence_length": sequence_length,
        "blend_per_split": blends,
        "mid_level_dataset_surplus": SURPLUS,
        "path_to_cache": str(cache / blend.content_sha256(manifests)[:16]),
    }
    if manifests[0].trajectory is not None:
        kind, config = TrajectoryDataset, BlendedMegatronDatasetConfig(**common)
        config.trajectory = manifests[0].trajectory
    else:
        kind = GPTDataset
        config = GPTDatasetConfig(
            **common,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            tokenizer=_tokenizer_facts(manifests[0]),
        )
    try:
        built = BlendedMegatronDatasetBuilder(kind, sizes, lambda: True, config).build()[split.value]
    except (ValueError, EOFError) as error:  # numpy's, of a file that a killed process left
        raise DataError(f"{config.path_to_cache}: its indices cannot be read ({error}). Cure: remove the folder; they "
                        "are made again (data_tools/prepare_cache.py).") from error
    if not any("loss_mask" in manifest.origin for manifest in manifests):
        return built
    twins, of_twins = _masks(blend, manifests)
    return AnswersOnly(built, _build(twins, of_twins, split, sequences, sequence_length, seed, cache))


def _masks(blend: Blend, manifests: list[Manifest]) -> tuple[Blend, list[Manifest]]:
    """The twins that say which tokens of datasets are scored. Raises DataError if one is missing or another one's."""
    twins = Blend(blend.weights, tuple(map(mask_prefix, blend.prefixes)))
    for prefix, manifest, twin in zip(blend.prefixes, manifests, twins.prefixes, strict=True):
        if "loss_mask" not in manifest.origin:
            raise DataError(f"{prefix}: has no loss mask, and others of its blend have one. Cure: make it with "
                            "preprocess_pairs.py too, or read it in a phase of its own.")
        if Manifest.load(twin).files["bin"].sha256 != manifest.origin["loss_mask"]["bin_sha256"] or (
                not np.array_equal(IndexedReader(twin).lengths, IndexedReader(prefix).lengths)):
            raise DataError(f"{twin}: is not the loss mask of {prefix}. "
                            "Cure: make both again with preprocess_pairs.py.")
    return twins, twins.manifests()


def _check_matching(first_prefix: Path, first: Manifest, other_prefix: Path, other: Manifest) -> None:
    """All data of a training must speak the same tokens in the same frames."""
    for name in ("kind", "vocab_size", "num_tokens", "trajectory", "tokenizer_sha256"):
        ours, theirs = getattr(first, name), getattr(other, name)
        if ours != theirs:
            raise DataError(
                f"{other_prefix}: its {name} is {theirs!r}, but that of {first_prefix} is {ours!r}. "
                "Cure: make both with the same settings or tokenizer."
            )


def _check_vocabulary(prefix: Path, manifest: Manifest, vocab_size: int) -> None:
    """Raise DataError unless the data's vocabulary is the model's."""
    if manifest.vocab_size != vocab_size:
        raise DataError(
            explain(
                "vocab_size",
                vocab_size,
                f"the model's vocabulary differs from the {manifest.vocab_size} of {prefix}.",
                "make the data again, or correct the recipe's dataset.",
            )
        )


def _check_enough(blend: Blend, manifests: list[Manifest], sequence_length: int, sequences: int) -> None:
    """Validation never repeats itself: Megatron would start a second epoch without a word."""
    for weight, prefix, manifest in zip(blend.weights, blend.prefixes, manifests, strict=True):
        framed = manifest.trajectory is not None
        whole = manifest.documents if framed else (manifest.tokens - 1) // sequence_length
        # Of several, Megatron takes its share from each, and a surplus so that none runs out.
        share = weight / sum(blend.weights)
        asked = sequences if share == 1 else math.ceil(math.ceil(sequences * share) * (1 + SURPLUS))
        if whole < asked:
            of_them = "of them" if share == 1 else f"sequences, and its share of the blend takes {asked}"
            reason = f"{prefix} holds only {whole} {of_them}."
            raise DataError(
                explain("validation_sequences", sequences, reason, "lower it, or make a larger held-out set.")
            )


def _stack(samples: list[dict], key: str, device: torch.device) -> torch.Tensor:
    dtype = np.float32 if key == "loss_mask" else np.int64
    return torch.stack([torch.as_tensor(np.asarray(sample[key], dtype=dtype)) for sample in samples]).to(device)


def _tokenizer_facts(manifest: Manifest) -> SimpleNamespace:
    """What GPTDataset asks of a tokenizer. eod is only used to mask or reset at document ends, which we do not."""
    identity = {"sha256": manifest.tokenizer_sha256, "vocab_size": manifest.vocab_size}
    return SimpleNamespace(vocab_size=manifest.vocab_size, eod=manifest.vocab_size - 1, unique_identifiers=identity)
