"""What each `method` fixes; everything else in a config stays free."""

from collections.abc import Mapping
from typing import Any

METHODS: Mapping[str, Mapping[str, Any]] = {
    "fmfsd": {"model.fusion": "trunk"},
    "byot": {"model.fusion": "none"},
    "plain": {"model.fusion": "none", "model.branches": []},
}
