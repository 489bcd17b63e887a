"""The base class for parts of a manifest that another version of nst may have written."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from nst_data.settings import later_fields


class AsWritten(BaseModel):
    """A model that is serialized with just the fields it was given, in their order, including unknown ones of a later nst.

    `Later` fields that have their `before` value are left out.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    _field_names: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_field_names(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - any JSON value
        model = handler(content)
        if isinstance(content, dict):
            model._field_names = tuple(content)
        return model

    @model_serializer(mode="wrap")
    def _serialize_as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later, values = later_fields(type(self)), handler(self)
        names = [name for name in self._field_names if name in values]  # who dumps it may leave some out
        return {name: values[name] for name in names if name not in later or values[name] != later[name]}
