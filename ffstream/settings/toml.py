"""Settings as TOML: files, assignments on the command line, and single values. No torch is imported here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ffstream.errors import ConfigError
from ffstream.ground.files import read_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: str | Path) -> dict[str, Any]:
    """Nested settings of a TOML file. Raises ConfigError when it is absent, not a regular file, or does not parse."""
    try:
        data = read_regular(path)
    except (OSError, ValueError) as error:  # ValueError: for a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"config file {path}: cannot be read ({reason})") from error
    return parse_toml(data, f"config file {path}")


def parse_toml(data: bytes, noun: str) -> dict[str, Any]:
    """Nested settings of TOML text. Raises ConfigError, beginning with `noun`, when it does not parse."""
    try:
        return _load_toml(data.decode())
    except RecursionError:
        raise ConfigError(f"{noun}: nested too deep; allowed sections of settings") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{noun}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{noun}: not valid TOML ({error})") from error
    except ValueError as error:
        raise ConfigError(f"{noun}: {_MANY_DIGITS}") from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `section.key=value` into the dotted key and a TOML value; a bare word is a string. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        lacking = "no name before '='" if equals else "no '='"
        raise ConfigError(f"--set {text}: found {lacking}, allowed section.key=value, for example objective.scale=10")
    if "\n" in value:
        raise ConfigError(f"--set {key.strip()}: found several lines, allowed section.key=value")
    try:
        return key.strip(), _load_toml(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except RecursionError:
        raise ConfigError(f"--set {key.strip()}: nested too deep; allowed section.key=value") from None
    except ValueError as error:
        raise ConfigError(f"--set {key.strip()}: {_MANY_DIGITS}") from error


_MANY_DIGITS = "found a number with thousands of digits, allowed what 64 bits hold"


def _load_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises TOMLDecodeError, RecursionError, and a plain ValueError for integers of too many digits."""
    found = tomllib.loads(text)
    repr(found)  # Python reads any hexadecimal number, but raises ValueError for writing a long one in decimal
    return found


def write_value(value: Any) -> str:
    """A value as TOML: JSON, which is TOML for our types if it writes no surrogates and escapes DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
