"""The ``model.py`` of a model whose import never ends: a download that hangs, a lock that nobody lets go of."""

import time

FOR_EVER_S = 3600.0

time.sleep(FOR_EVER_S)


def build(_: object) -> None:
    """Never called."""
