"""Durations as people write them."""

import re

from megatron_nca.errors import ConfigError

_PATTERN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def seconds_of(text: str) -> float:
    """Seconds of `3h50m`, `90s`, `1d12h` or a plain number of seconds. Raises ConfigError."""
    match = _PATTERN.fullmatch(text.replace(" ", "")) if text.strip() else None
    if match is None:
        raise ConfigError(f"{text!r} is no duration. Cure: give for example 3h50m, 90s or 13800.")
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))
