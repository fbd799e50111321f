"""Tests of the predictor never see the S3 settings of the shell they run in. The end-to-end tests do: kubectl may need them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_aws_settings_from_outside() -> Iterator[None]:
    """Take AWS_... away, for boto3 in this process and for every pod that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        yield
