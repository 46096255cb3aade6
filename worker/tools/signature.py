"""A function's signature as a JSON Schema, and arguments made to fit it, by Pydantic."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import GenerateJsonSchema

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class SignatureError(Exception):
    """A function that cannot be called by a model."""


class Signature:
    """The parameters of one function, all of which have names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Read the signature; raises SignatureError, or what its annotations raise."""
        self._model = _model(inspect.signature(function, eval_str=True))
        self.parameters = self._model.model_json_schema(schema_generator=_WithoutTitles)
        self.parameters.pop("title", None)

    def validated(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments, coerced to the annotated types; raises ValidationError."""
        instance = self._model.model_validate(arguments)
        fields = type(instance).model_fields
        # What was not given is left to the function's own default.
        return {str(fields[name].alias): getattr(instance, name) for name in instance.model_fields_set}


def _model(signature: inspect.Signature) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for number, parameter in enumerate(signature.parameters.values()):
        if parameter.kind not in _BY_NAME:
            raise SignatureError(f"its parameter '{parameter}' has no name that a model could give")
        given = parameter.annotation
        annotation: Any = Any if given is inspect.Parameter.empty else given
        default: Any = ... if parameter.default is inspect.Parameter.empty else parameter.default
        # A parameter may have a name that a model's field cannot, such as `json` or `_private`.
        fields[f"parameter_{number}"] = (Annotated[annotation, Field(alias=parameter.name)], default)
    model: type[BaseModel] = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)
    return model


class _WithoutTitles(GenerateJsonSchema):
    """Pydantic's schema without a title for each field, which only repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - Pydantic's signature
        return False
