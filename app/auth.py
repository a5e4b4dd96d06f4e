"""Who may call: everybody on loopback, or the bearer of a configured key."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.settings import Settings
from retrieval.errors import Unauthorized

_bearer = HTTPBearer(auto_error=False, description="one of FOOTNOTE_API_KEYS, where the service asks for keys")


async def _caller(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
    settings: Settings = request.app.state.settings
    if not settings.asks_for_keys:
        return
    given = credentials.credentials.encode() if credentials else b""
    if not any([hmac.compare_digest(given, key.encode()) for key in settings.keys]):  # noqa: C419 - look at all, whichever fits
        raise Unauthorized("this service asks for a key: send `Authorization: Bearer <key>` with one of FOOTNOTE_API_KEYS")


Caller = Depends(_caller)
