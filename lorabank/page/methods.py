"""The methods that can be chosen, with their papers and settings."""

from __future__ import annotations

from itertools import groupby

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorabank.core.methods import methods
from lorabank.page.rendering import page

router = APIRouter()


@router.get("/methods")
def known(request: Request) -> Response:
    """Every method by its family."""
    families = [(family, list(found)) for family, found in groupby(methods(), key=lambda one: one.family)]
    return page(request, "methods.j2", families=families)
