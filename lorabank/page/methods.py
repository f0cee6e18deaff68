"""The methods that can be chosen, with their papers and settings."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorabank.core.methods import Method, methods
from lorabank.page.rendering import page

router = APIRouter()


@router.get("/methods")
def known(request: Request) -> Response:
    """Every method by its family."""
    families: dict[str, list[Method]] = {}
    for one in methods():  # those that are not offered come last
        families.setdefault(one.family, []).append(one)
    return page(request, "methods.j2", families=families.items())
