"""Complexity as the gzip ratio (paper, complexity filter; released code utils/nca.py, compute_rule_gzip_batch).

Ratio = bytes of a gzip file at level 9, header and trailer included, over the bytes of the tokens. It depends on the
alphabet, the frames and the bytes of a token, so bands are comparable only within one law.
"""

import functools

import numpy as np

from megatron_nca import ops
from megatron_nca.config.law import NcaLaw
from megatron_nca.errors import ConfigError, DataError, explain

CEILING_DRAWS = 64
CALIBRATION_KEY = 0x63616C69
CEILING_MARGIN = 1.03
"""Nothing proves that no rule exceeds uniform tokens; of 6,000 rules each of eight laws none reached 0.994 of them."""


def gzip_ratio(tokens: np.ndarray, *, dtype: str = "int32", threads: int = 1) -> np.ndarray:
    """Ratios float64 (N,) of `tokens` (N,T,P), each row's tokens in order as little-endian `dtype`.

    Equal to the last digit to Python's gzip.GzipFile(mode="wb", compresslevel=9). Raises DataError for a token that
    `dtype` cannot hold.
    """
    tokens = np.asarray(tokens)
    limits = np.iinfo(dtype)
    if tokens.size and not limits.min <= tokens.min() <= tokens.max() <= limits.max:
        raise DataError(explain("tokens", [int(tokens.min()), int(tokens.max())], f"do not fit {dtype}.", "use int32."))
    little = np.dtype(dtype).newbyteorder("<")
    buffers = np.ascontiguousarray(tokens.reshape(len(tokens), -1), dtype=little).view(np.uint8)
    return ops.gzip_sizes(buffers, threads=threads) / buffers.shape[1]


def in_band(ratios: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    """Boolean, of the shape of `ratios`: which lie in the open interval (LOW, HIGH)."""
    low, high = band
    return (low < ratios) & (ratios < high)


def extremes(law: NcaLaw) -> tuple[float, float]:
    """(floor, ceiling) of the official ratios that rules of `law` can have.

    Floor: all tokens equal. Ceiling: the largest of 64 streams of independent uniform tokens, and 3 %.
    """
    shape = (CEILING_DRAWS, law.score_frames, law.patches_per_frame)
    draws = np.random.Generator(np.random.Philox(0)).integers(0, law.start_token, shape)
    ratios = _score(law, np.concatenate([np.zeros((1, *shape[1:]), dtype=np.int64), draws]))
    return float(ratios[0]), float(ratios[1:].max() * CEILING_MARGIN)


def uniform_ratio(law: NcaLaw) -> float:
    """The official ratio of independent uniform tokens of `law`: what the calibrated scale calls 1.

    The mean over 64 streams of fixed bits (Philox4x64, key 0x63616C69, 32 bits a token, scaled by multiplication), so
    it is a constant of the law. 0.669 for the released law.
    """
    tokens = uniform_tokens(law.start_token, law.score_frames * law.patches_per_frame)
    return mean_ratio(_score(law, tokens.reshape(CEILING_DRAWS, law.score_frames, -1)), _score_bytes(law))


def uniform_tokens(alphabet: int, length: int) -> np.ndarray:
    """64 streams int64 (64, length) of independent uniform tokens below `alphabet` (at most 2^32), of fixed bits."""
    words = np.random.Philox(key=CALIBRATION_KEY).random_raw(CEILING_DRAWS * length) >> np.uint64(32)
    return (words * np.uint64(alphabet) >> np.uint64(32)).astype(np.int64).reshape(CEILING_DRAWS, length)


def mean_ratio(ratios: np.ndarray, total: int) -> float:
    """Mean of `ratios` (N,) of streams of `total` bytes, summed as whole bytes, so that no order of summing matters."""
    return int(np.rint(ratios * total).astype(np.int64).sum()) / (len(ratios) * total)


def official_band(law: NcaLaw) -> tuple[float, float]:
    """The law's band as an open interval of official ratios, whatever scale it is given in."""
    if law.band_scale == "official":
        return law.band
    unit = uniform_ratio(law)
    return law.band[0] * unit, law.band[1] * unit


def band_bytes(law: NcaLaw) -> tuple[int, int]:
    """(fewest, most) bytes of a gzip file that lies in the law's band, both included; fewest > most: none."""
    low, high = official_band(law)
    total = _score_bytes(law)
    fewest, most = int(low * total), int(np.ceil(high * total))
    while fewest / total <= low:  # the same comparison of floats as the filter's
        fewest += 1
    while most / total >= high:
        most -= 1
    return fewest, most


def _score_bytes(law: NcaLaw) -> int:
    """Bytes of the tokens that are compressed."""
    tokens = law.patches_per_frame + 2 * law.score_delimiters
    return law.score_frames * tokens * np.dtype(law.score_dtype).itemsize


def _score(law: NcaLaw, tokens: np.ndarray) -> np.ndarray:
    """Ratios (N,) of patch tokens (N,T,P), compressed as the law says."""
    if law.score_delimiters:
        tokens = np.pad(tokens, ((0, 0), (0, 0), (1, 1)))
        tokens[..., 0], tokens[..., -1] = law.start_token, law.end_token
    return gzip_ratio(tokens, dtype=law.score_dtype)


def check_band(law: NcaLaw) -> None:
    """Raises ConfigError if no rule of `law` can lie in its band, naming what they can reach."""
    floor, ceiling = extremes(law)
    low, high = official_band(law)
    scale = "" if law.band_scale == "official" else f" (band_scale = calibrated: {low:.3f} to {high:.3f} official)"
    if low >= ceiling:
        raise ConfigError(
            explain(
                "law.band",
                list(law.band),
                f"no rule can pass{scale}: with num_states = {law.num_states}, patch = {law.patch} and "
                f"{law.score_frames} frames as {law.score_dtype} even independent uniform tokens have a gzip ratio "
                f"of at most {ceiling:.3f}.",
                f"lower LOW below {ceiling:.3f} (about {0.72 * ceiling:.2f} is to this law what 0.5 is to the "
                "released one), set band_scale to calibrated, or use more states."
                if law.band_scale == "official"
                else f"lower LOW below {ceiling / uniform_ratio(law):.3f}.",
            )
        )
    if high <= floor:
        raise ConfigError(
            explain(
                "law.band",
                list(law.band),
                f"no rule can pass{scale}: tokens that are all equal have a gzip ratio of {floor:.3f} already.",
                f"raise HIGH above {floor / (1 if law.band_scale == 'official' else uniform_ratio(law)):.3f}.",
            )
        )


ZLIB_PROBE_BYTES = 1218
"""Size of the probe's gzip file under zlib 1.2.13."""


@functools.cache
def check_zlib() -> None:
    """Raises DataError if this machine's zlib compresses otherwise than the one that the method was measured with.

    Replacements of zlib (zlib-ng, Cloudflare's) make other sizes at the same level, which would change in silence
    which rules pass. The probe: 1,440 tokens from alphabets of 2, 5, 17 and 97.
    """
    probe = np.random.Philox(1).random_raw(4 * 360) % np.repeat(np.array([2, 5, 17, 97], dtype=np.uint64), 360)
    size = int(ops.gzip_sizes(probe[None].astype("<i4").view(np.uint8))[0])
    if size != ZLIB_PROBE_BYTES:
        raise DataError(
            explain(
                "zlib",
                size,
                f"a probe must compress to {ZLIB_PROBE_BYTES} bytes; this machine's zlib "
                "is another implementation and would select other rules.",
                "let the program load the original zlib (LD_LIBRARY_PATH).",
            )
        )
