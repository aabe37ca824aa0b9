"""Skip marker of tests that need DeepSpeed."""

from importlib.util import find_spec

import pytest

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed: the extra of that name")
