"""Shared by all tests: no network, one thread, fixed hashing of nothing but content."""

import os
import tempfile

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="sft-atlas-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
