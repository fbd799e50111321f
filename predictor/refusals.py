"""Every error of a FastAPI application as ``{"error": "..."}`` with its status: for the pod's ports and the controller's."""

from __future__ import annotations

import math
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from predictor.errors import HearthError


def tell_errors(app: FastAPI, *, whose: str) -> None:
    """Have ``app`` answer so. ``whose`` log tells more about an error of our own: the server's, the controller's."""

    async def on_failure(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"internal error: {type(error).__name__}; {whose} log tells more"}, 500)

    app.add_exception_handler(HearthError, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, on_failure)


async def _on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HearthError), error
    headers = None
    if error.retryable and error.retry_after_s is not None:
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return JSONResponse({"error": error.message}, error.http_status, headers)


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), error
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), error
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return JSONResponse({"error": "; ".join(faults)}, HTTPStatus.UNPROCESSABLE_ENTITY)
