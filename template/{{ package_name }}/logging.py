"""Structured logs: lines for people in development and tests, JSON everywhere else."""

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict

from .config import settings

HANDLER = "service"


def _hide_rows(errors: list[dict[str, Any]]) -> None:
    """Of what Postgres refuses it quotes the whole row, or the values that clash."""
    for error in errors:
        error["exc_value"] = error["exc_value"].partition("\nDETAIL:")[0]
        for of_group in error.get("exceptions", []):
            _hide_rows(of_group)


def without_rows(_: object, __: str, event: EventDict) -> EventDict:
    """Leave out what errors of Postgres tell of the data."""
    if isinstance(errors := event.get("exception"), list):
        _hide_rows(errors)
    return event


def configure_logging() -> None:
    """Send structlog and the standard library through one handler. May be called again."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[structlog.typing.Processor]
    if settings.environment in {"development", "test"}:
        final = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    else:
        final = [
            structlog.processors.ExceptionRenderer(
                # Without local variables: secrets and what customers said are among them.
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            without_rows,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]

    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler()
    handler.set_name(HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )

    # Only our own handler is replaced: others belong to whoever embeds the service, such as pytest.
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if other.get_name() != HANDLER]
    root.addHandler(handler)
    root.setLevel(settings.log_level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # The middleware logs each request, with its id.
    logging.getLogger("uvicorn.access").handlers = []
    logging.getLogger("uvicorn.access").propagate = False
