"""One thread per process: the suite runs on shared cores, and thread count changes the last bits."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

# Shape annotations are checked in tests only.
install_import_hook(["bench.layers", "bench.contract", "bench.encoders", "bench.scoring"], "beartype.beartype")

import torch

torch.set_num_threads(1)
