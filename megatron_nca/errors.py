"""The errors a user can cause. Each message names the setting, its value, the reason and the cure."""

import errno
import os

NOT_FINISHED = 75
"""Exit code of what has stopped in good order before its end and goes on when started again (EX_TEMPFAIL)."""


class MegatronNcaError(Exception):
    """Base of all errors that end a command with one message and `exit_code`, without a traceback."""

    exit_code = 2


class ConfigError(MegatronNcaError):
    """A setting that is unknown, of the wrong type, out of range, or at odds with another."""


class DataError(MegatronNcaError):
    """A dataset or corpus that is missing, truncated, foreign, or not what the settings say."""


class CheckpointError(MegatronNcaError):
    """A checkpoint that is missing, incomplete, or of another shape."""


class LaunchError(MegatronNcaError):
    """A step that could not be started, or that ended in failure."""


class StepFailed(LaunchError):
    """A step that ended in a failure that is no user's error."""

    exit_code = 1


def explain(setting: str, value: object, reason: str, cure: str) -> str:
    """One message in the house form, e.g. ``parallel.tensor = 3: ... Cure: ...``."""
    return f"{setting} = {value!r}: {reason} Cure: {cure}"


def of_system(error: OSError) -> str | None:
    """The message about a file whose name is too long for the system, or which may not be reached; None for any other
    error."""
    if error.filename is None or error.errno not in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
        return None
    path = os.fsdecode(error.filename)
    if error.errno == errno.ENAMETOOLONG:
        return f"{path}: its name is too long. Cure: choose a shorter one."
    return f"{path}: {error.strerror}. Cure: check its rights, and those of the folders above it."
