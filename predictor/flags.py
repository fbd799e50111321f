"""The flags of ``hearth serve``: one for every setting, ``--name-with-dashes`` for ``HEARTH_NAME``.

The boot reads them before anything else is imported, so this file costs argparse and nothing more. What a setting
means and what it is when nobody says is told in settings.py alone; ``--help`` fetches it from there.
"""

from __future__ import annotations

import argparse
from typing import Final, NamedTuple

ENVIRONMENT_PREFIX: Final = "HEARTH_"


class Flag(NamedTuple):
    """One setting as the command line takes it.

    kind     what its value must look like; anything finer is checked by settings.py
    choices  the only values allowed; empty: any
    """

    setting: str
    kind: type[str | int | float | bool]
    metavar: str = ""
    choices: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """As it is typed."""
        return "--" + self.setting.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable it stands for."""
        return ENVIRONMENT_PREFIX + self.setting.upper()


SERVE_FLAGS: Final = (
    Flag("models", str, "S3_URL"),
    Flag("declared_path", str, "FOLDER"),
    Flag("credentials_path", str, "FOLDER"),
    Flag("host", str, "ADDRESS"),
    Flag("port", int, "PORT"),
    Flag("admin_port", int, "PORT"),
    Flag("device", str, choices=("auto", "cpu", "cuda")),
    Flag("device_count", int, "N"),
    Flag("trust", str, choices=("data", "code")),
    Flag("isolation", str, choices=("pool", "tenant", "model")),
    Flag("max_workers", int, "N"),
    Flag("quarantine_backoff_s", float, "SECONDS"),
    Flag("poison_ttl_s", float, "SECONDS"),
    Flag("confine", str, choices=("auto", "strict", "off")),
    Flag("worker_network", str, choices=("deny", "allow")),
    Flag("worker_reads", str, "FOLDER,..."),
    Flag("scratch_bytes", int, "BYTES"),
    Flag("ram_budget_bytes", int, "BYTES"),
    Flag("device_budget_bytes", int, "BYTES"),
    Flag("disk_path", str, "FOLDER"),
    Flag("disk_budget_bytes", int, "BYTES"),
    Flag("cpu_copy", bool),
    Flag("pin", str, "NAME,..."),
    Flag("preload", str, "NAME,..."),
    Flag("wake_up", str, choices=("hot-set", "off")),
    Flag("min_residency_s", float, "SECONDS"),
    Flag("idle_ttl_s", float, "SECONDS"),
    Flag("tenant_floors", str, "NAME=SHARE,..."),
    Flag("state", str, "S3_URL"),
    Flag("pool", str, "NAME"),
    Flag("namespace", str, "NAME"),
    Flag("pod", str, "NAME"),
    Flag("hold_timeout_s", float, "SECONDS"),
    Flag("max_waiting", int, "N"),
    Flag("max_in_flight", int, "N"),
    Flag("max_in_flight_per_model", int, "N"),
    Flag("max_queued_per_model", int, "N"),
    Flag("max_body_bytes", int, "BYTES"),
    Flag("max_body_bytes_in_flight", int, "BYTES"),
    Flag("max_body_bytes_in_flight_per_model", int, "BYTES"),
    Flag("starvation_s", float, "SECONDS"),
    Flag("max_connections", int, "N"),
    Flag("idle_timeout_s", float, "SECONDS"),
    Flag("busy_poll_us", int, "MICROSECONDS"),
    Flag("fetch_part_bytes", int, "BYTES"),
    Flag("fetch_concurrency", int, "N"),
    Flag("fetch_timeout_s", float, "SECONDS"),
    Flag("fetch_retries", int, "N"),
    Flag("fetch_deadline_s", float, "SECONDS"),
    Flag("settle_s", float, "SECONDS"),
    Flag("unknown_ttl_s", float, "SECONDS"),
    Flag("refresh_s", float, "SECONDS"),
    Flag("build_timeout_s", float, "SECONDS"),
    Flag("execute_timeout_s", float, "SECONDS"),
    Flag("drain_timeout_s", float, "SECONDS"),
    Flag("sick_timeout_s", float, "SECONDS"),
    Flag("memory_share", float, "SHARE"),
    Flag("max_late_s", float, "SECONDS"),
    Flag("stuck_log_s", float, "SECONDS"),
    Flag("stuck_exit_s", float, "SECONDS"),
    Flag("system_root", str, "FOLDER"),
    Flag("log_level", str, choices=("debug", "info", "warning", "error")),
)
"""Every setting once; what is asked for most comes first in ``--help``."""


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take every flag of the table. A flag that is not given leaves no trace in the namespace."""
    for flag in SERVE_FLAGS:
        if flag.kind is bool:
            parser.add_argument(
                flag.option, dest=flag.setting, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS
            )
        else:
            parser.add_argument(
                flag.option,
                dest=flag.setting,
                type=flag.kind,
                metavar=flag.metavar or None,
                choices=flag.choices or None,
                default=argparse.SUPPRESS,
            )


def environment(given: argparse.Namespace) -> dict[str, str]:
    """The environment that says what these flags say; flags not given are left to the environment there is."""
    named = vars(given)
    return {
        flag.variable: str(named[flag.setting]).lower() if flag.kind is bool else str(named[flag.setting])
        for flag in SERVE_FLAGS
        if flag.setting in named
    }


class ServeParser(argparse.ArgumentParser):
    """The parser of ``hearth serve``. Its help asks settings.py (pydantic, 0.2 s) only when somebody wants to read it."""

    def __init__(self) -> None:
        super().__init__(
            prog="hearth serve",
            usage="%(prog)s --models s3://bucket/prefix [--port 8080] [--admin-port 8082] [options]",
            description="Serve every model below an S3 prefix: each is fetched on its first request and dropped when "
            "something more valuable needs the room.",
            epilog="Every flag is an environment variable too: --ram-budget-bytes is HEARTH_RAM_BUDGET_BYTES; the flag wins. "
            "S3 is configured as for boto3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...",
            allow_abbrev=False,
        )
        add_serve_flags(self)

    def format_help(self) -> str:
        """The help text, with what settings.py says of each flag."""
        from predictor.settings import Settings  # noqa: PLC0415 (a pod that starts must not pay for it here)

        for action in self._actions:
            setting = Settings.model_fields.get(action.dest)
            if setting is not None:
                default = setting.get_default()
                worth_telling = isinstance(default, (str, int, float)) and not isinstance(default, bool) and default != ""
                action.help = ((setting.description or "") + (f" [{default}]" if worth_telling else "")).replace("%", "%%")
        return super().format_help()
