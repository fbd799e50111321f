"""A model behind FastAPI, as one writes it by hand with an eye on speed: `uvicorn loadtest.peers.fastapi_app:app`.

One process, torch inside. The body is read with orjson and not checked by a pydantic model, the endpoint is `async`
(no thread pool) and the answer is written as bytes. PEERS_MODELS names the folder with a folder for each model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import orjson
import torch
from fastapi import FastAPI, Request, Response
from safetensors.torch import load_file
from torch import nn

from loadtest.peers.model import build

HEADER = "inference-header-content-length"


def load(folder: Path) -> nn.Module:
    """One model, ready to compute."""
    module = build(json.loads((folder / "config.json").read_text())).eval()
    module.load_state_dict(load_file(folder / "model.safetensors"))
    return module


torch.set_num_threads(1)
MODULES = {folder.name: load(folder) for folder in Path(os.environ["PEERS_MODELS"]).iterdir()}
app = FastAPI(openapi_url=None)


@app.post("/v2/models/{name}/infer")
async def infer(name: str, request: Request) -> Response:
    """V2 inference, JSON or binary in and the same out."""
    body = await request.body()
    header_bytes = request.headers.get(HEADER)
    if header_bytes is None:
        (tensor,) = orjson.loads(body)["inputs"]
        values = np.asarray(tensor["data"], dtype=np.float32)
    else:
        (tensor,) = orjson.loads(body[: int(header_bytes)])["inputs"]
        values = np.frombuffer(body, dtype=np.float32, offset=int(header_bytes))
    with torch.inference_mode():
        found = MODULES[name](torch.from_numpy(values.reshape(tensor["shape"]))).numpy()
    output = {"name": "y", "shape": found.shape, "datatype": "FP32"}
    if header_bytes is None:
        answer = {"model_name": name, "outputs": [{**output, "data": found.ravel()}]}
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
    raw = found.tobytes()
    head = orjson.dumps({"model_name": name, "outputs": [{**output, "parameters": {"binary_data_size": len(raw)}}]})
    return Response(head + raw, media_type="application/octet-stream", headers={HEADER: str(len(head))})
