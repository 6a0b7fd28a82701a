"""The API document, made truthful: errors as they are really sent."""

from typing import Any

from fastapi import FastAPI

from .errors import Problem, problems


class Service(FastAPI):
    """FastAPI whose document describes the error envelope instead of FastAPI's own."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema:
            return self.openapi_schema
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                responses = operation["responses"]
                if "requestBody" in operation:
                    _declare(responses, 400, 413)  # not decodable, too large
                if "422" in responses:
                    _declare(responses, 422)
        schemas = document["components"]["schemas"]
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        schemas["Problem"] = Problem.model_json_schema()
        return document


def _declare(responses: dict[str, Any], *statuses: int) -> None:
    responses.update({str(status): problem for status, problem in problems(*statuses).items()})
