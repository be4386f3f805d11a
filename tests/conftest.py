"""What holds for every test: nobody's settings leak in, nothing reaches for a hub, no GPU is assumed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for name in list(os.environ):
    if name.startswith(("FLUXSERVE_", "FAL_")) and name != "FLUXSERVE_TEST_MODEL":
        del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not Path("/dev/nvidiactl").exists():
    # Without a GPU our kernels run in Triton's interpreter; triton reads this when it is imported, by torch or by us.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _accelerator_for_gpu_tests(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no accelerator here")
