"""What several verbs ask of argparse."""

import argparse


def accept_overrides_anywhere(parser: argparse.ArgumentParser) -> None:
    """Take `a.b=value` after options too: argparse itself ends `nargs="*"` at the first option."""
    parse = parser.parse_known_args

    def parse_known_args(*positional, **named):
        arguments, rest = parse(*positional, **named)
        late = [word for word in rest if "=" in word and not word.startswith("-")]
        arguments.overrides += late
        return arguments, [word for word in rest if word not in late]

    parser.parse_known_args = parse_known_args
