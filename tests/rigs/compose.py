"""Read commands and variables of the services in infra/compose.yaml as Compose would pass them, to run without it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import yaml

FILE = Path(__file__).parents[2] / "infra" / "compose.yaml"
KEYS = "/run/igpt/keys"
"""Where a container sees its folder of keys and passwords."""
HOME = "/home/igpt"
# ${NAME}, ${NAME:-default} or ${NAME:?message}, unless the dollar sign is doubled.
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Substitute variables as Compose does. Raises KeyError with the message of a required variable that is not set."""

    def value(match: re.Match[str]) -> str:
        name, kind, default = match["name"], match["kind"], match["text"]
        if variables.get(name):
            return variables[name]
        if kind == "-":
            return default
        raise KeyError(default or name)

    return VARIABLE.sub(value, text).replace("$$", "$")


@dataclass(frozen=True, kw_only=True)
class ComposeService:
    """The command, the variables and the keys of one container."""

    command: list[str]
    """Empty: the one of the image."""
    environment: dict[str, str]
    keys: dict[str, str]
    """The folders of the volume `keys` that it sees, by where it sees them."""

    def reading(self, folder: Path) -> Self:
        """The same without a container: it reads its keys in their folder of a volume."""
        own = str(folder / self.keys[KEYS])
        return replace(
            self,
            command=[word.replace(KEYS, own) for word in self.command],
            environment={name: value.replace(KEYS, own) for name, value in self.environment.items()},
        )


class Compose:
    """The file, with the variables that .env would set."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = variables or {}
        self._content: dict[str, Any] = yaml.safe_load(FILE.read_text())

    def service(self, name: str) -> ComposeService:
        """The command and the variables of a service."""
        service = self._content["services"][name]
        environment = service.get("environment", {})
        mounts = [mount for mount in service.get("volumes", []) if isinstance(mount, dict)]
        return ComposeService(
            command=[self._text(word) for word in service.get("command", [])],
            environment={key: self._text(value) for key, value in environment.items()},
            keys={mount["target"]: mount["volume"]["subpath"] for mount in mounts if mount["source"] == "keys"},
        )

    def _text(self, value: object) -> str:
        return interpolate(str(value), self._variables)
