"""Finds out which cluster is meant and with which credentials: as kubectl does, else as a pod does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import list_kube_config_contexts, load_kube_config

NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


async def credentials(context: str = "") -> tuple[Configuration, str]:
    """KUBECONFIG, else the pod's service account, else ~/.kube/config. Asks no server.

    context  of the kubeconfig; "": its current one

    The string is the namespace that goes with them; "": none is named. ValueError says what is missing or wrong.
    """
    configuration = Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # the package's
            return configuration, NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else ""
        file = os.environ.get("KUBECONFIG") or "~/.kube/config"
        await load_kube_config(file, context or None, configuration)  # type: ignore[no-untyped-call]
        contexts, current = list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from error
    chosen = next((told for told in contexts if told["name"] == context), current)
    return configuration, str(chosen["context"].get("namespace") or "")
