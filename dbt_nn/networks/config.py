"""What a network or a noise schedule takes of its JSON file, checked by pydantic.

A network's configuration is a `Config` with a field for each key that decides what
is computed. A key that no field has is stored and not looked at. What is refused is
a `CheckpointError` that names the key, its value and what is supported: a field's
description, or what its type says.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from dbt_nn.checkpoint.config import unsupported
from dbt_nn.checkpoint.files import CheckpointError

# The most dimensions of a pgvector `vector`.
MAX_VECTOR = 16_000
# The most that a Postgres integer holds.
MAX_INTEGER = (1 << 31) - 1


def whole(default: Any = ..., least: int = 1, most: int = MAX_INTEGER) -> Any:
    """A field of a whole number; the number that a file has that lacks the key."""
    supported = f"{least} to {most:,} are"
    if (least, most) == (1, MAX_INTEGER):
        supported = "a whole number above 0 is"
    if default is None:
        supported = f"null or {supported}"
    return Field(default, ge=least, le=most, description=supported)


class Config(BaseModel):
    """The keys of a config.json, or another file, that decide what is computed.

    The types are strict: JSON's true is no number, and 1.0 no whole number.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", validate_default=True
    )

    quantization_config: None = Field(None, exclude=True, description="none is")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The values of keys that a file may leave out."""
        return {
            name: field.get_default(call_default_factory=True)
            for name, field in cls.model_fields.items()
            if not field.is_required() and not field.exclude
        }

    @classmethod
    def read(cls, content: dict[str, Any], where: str = "config.json") -> Self:
        """Check the content of a file, which messages name as `where`.

        Raises:
            CheckpointError: a key is missing, or has a value that is not supported.

        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise cls._refusal(error, content, where) from None

    def size(self, name: str) -> int:
        """A width by its name."""
        return getattr(self, name)

    @classmethod
    def _refusal(
        cls, error: ValidationError, content: dict[str, Any], where: str
    ) -> CheckpointError:
        """The message for the first key that is refused."""
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        supported = _supported(cls.model_fields[key])
        if first["type"] == "missing":
            return CheckpointError(
                f"{where} says nothing for {key}, which is needed ({supported}). "
                "Use the file that belongs to the checkpoint."
            )
        if first["type"] == "list_type":
            supported = "a list is"
        # one word of a list of words, but all numbers of a list of them
        of_item = len(first["loc"]) == 1 or first["type"] == "literal_error"
        value = first["input"] if of_item else content[key]
        return unsupported(key, value, supported, where)


def _supported(field: FieldInfo) -> str:
    """What values a field takes, for `(… is)` in a message."""
    if field.description:
        return field.description
    if field.annotation is bool:
        return "true and false are"
    words = get_args(_literal(field.annotation))
    if len(words) == 1:
        return f"only {json.dumps(words[0])} is"
    return f"{', '.join(words[:-1])} and {words[-1]} are"


def _literal(kind: Any) -> Any:
    """The Literal of `Literal[…]` or `list[Literal[…]]`."""
    return kind if get_origin(kind) is Literal else get_args(kind)[0]
