"""What every place for a bank's rows and content must keep, as tests that anybody can run over their own.

    from lorabank.testing import CatalogContract, ObjectsContract

    class TestMine(ObjectsContract):
        def make(self, folder):
            return MyObjects(folder)

pytest collects the class; each test begins in an empty folder. The bank's own implementations run under the same
suites (`tests/unit/bank/objects/test_contract.py`, `tests/unit/bank/catalog/test_contract.py`).
"""

from __future__ import annotations

from lorabank.testing.catalog import CatalogContract
from lorabank.testing.cuts import Cut
from lorabank.testing.objects import ObjectsContract

__all__ = ["CatalogContract", "Cut", "ObjectsContract"]
