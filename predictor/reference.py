"""Writes the reference pages that are tables of what the code says: settings, metrics, errors, the load test's options.

    python -m predictor.reference          (make reference)

The house test holds the pages against this, so a setting without a line in the docs cannot land.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Final

from loadtest.options import CHOICES, HELP, Options, option_of
from predictor import errors
from predictor.errors import HearthError
from predictor.flags import SERVE_FLAGS
from predictor.settings import Settings
from predictor.telemetry import METRICS, Metric
from warmup import settings as controller
from warmup import telemetry as controller_metrics

FOLDER: Final = Path("docs/reference")
MADE: Final = "<!-- Written by `make reference`. -->\n"


def pages() -> dict[str, str]:
    """File name → contents."""
    return {"settings.md": _settings(), "metrics.md": _metrics(), "errors.md": _errors(), "loadtest.md": _loadtest()}


def _settings() -> str:
    rows = []
    for flag in SERVE_FLAGS:
        field = Settings.model_fields[flag.setting]
        default = "" if field.is_required() else field.default
        text = str(default).lower() if isinstance(default, bool) else str(default)
        shown = "" if default in ("", None, ()) else f"`{text}`"
        rows.append(f"| `{flag.variable}` | `{flag.option}` | {shown} | {field.description} |")
    return (
        f"# Settings\n\n{MADE}\n"
        "Every setting of `hearth serve` is an environment variable and a flag; the flag wins. Units stand in the names.\n"
        "S3 is configured as for boto3: `AWS_ENDPOINT_URL` (or `AWS_ENDPOINT_URL_S3`), `AWS_ACCESS_KEY_ID`,\n"
        "`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_CA_BUNDLE`, profiles and roles; and as KServe does:\n"
        "`awsAnonymousCredential=true`, `S3_USER_VIRTUAL_BUCKET=true` (the bucket in the host name), `S3_VERIFY_SSL=0`.\n"
        "An HTTPS endpoint is asked through `HTTPS_PROXY`, unless `NO_PROXY` names it.\n\n"
        "| variable | flag | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n" + _controller_settings()
    )


def _controller_settings() -> str:
    rows = [
        f"| `{controller.PREFIX}{name.upper()}` | `{controller.option(name)}` "
        f"| {'' if field.default == '' else f'`{field.default}`'} | {field.description} |"
        for name, field in controller.ControllerSettings.model_fields.items()
    ]
    return (
        "\n## The controller\n\n"
        "The same of `hearth controller`. It looks at models without credentials of their own as their pool does: by the\n"
        "`AWS_*` variables of the pool's container, and where those say nothing, by its own.\n\n"
        "| variable | flag | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _metrics() -> str:
    return (
        f"# Metrics\n\n{MADE}\n`GET /metrics` on the admin port, in the Prometheus text format. Units stand in the names.\n\n"
        f"{_table(METRICS)}\n## The controller\n\n`GET /metrics` on its port.\n\n{_table(controller_metrics.METRICS)}"
    )


def _table(metrics: Iterable[Metric]) -> str:
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in metrics
    ]
    return "| metric | kind | labels | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _errors() -> str:
    rows = [
        f"| {kind.http_status} | `{kind.__name__}` | {'yes' if kind.retryable else 'no'} | {_sentence(kind)} |"
        for kind in sorted(_kinds(HearthError), key=lambda kind: (kind.http_status, kind.__name__))
    ]
    return (
        f"# Errors\n\n{MADE}\n"
        'Every error\'s body is `{"error": "what happened, how much, what to do"}`. Where a retry can help and Hearth '
        "knows when,\nthe response has a `Retry-After` header with the seconds to wait.\n\n"
        "| status | error | a retry helps | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _loadtest() -> str:
    rows = []
    for field in fields(Options):
        told = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        default = f"`{told}`" if field.default else ""
        choices = f" ({', '.join(f'`{choice}`' for choice in CHOICES[field.name])})" if field.name in CHOICES else ""
        rows.append(f"| `{option_of(field.name)}` | {default} | {HELP[field.name].replace('%%', '%')}{choices} |")
    return (
        f"# Options of the load test\n\n{MADE}\n"
        "Of `hearth loadtest run`, `hearth loadtest schedule` and `locust -f loadtest/locustfile.py`; what they are for is in\n"
        "[Load tests](../loadtest.md). `run` also takes `--host`, `--processes`, `--web` and Locust's own options.\n\n"
        "| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _sentence(kind: type[HearthError]) -> str:
    """The first sentence of its docstring; names of files have dots in them, too."""
    return " ".join((kind.__doc__ or "").partition(". ")[0].partition(".\n")[0].removesuffix(".").split()) + "."


def _kinds(kind: type[HearthError]) -> Iterator[type[HearthError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
        yield from _kinds(below)


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
