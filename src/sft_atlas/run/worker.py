"""Do one job after another in a process that keeps base models and tokenizers in memory.

Jobs come as JSON lines on stdin and events leave as JSON lines on stdout; whatever libraries print goes to
stderr. The store is the truth: every result is published there before its event is sent, and a job is done
only under its lease, so a lost event costs nothing. This is the only module that knows the stages.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from sft_atlas.data.batches import TrainingRows
from sft_atlas.data.encoding import load_tokenizer
from sft_atlas.data.prepared import PreparedRows, prepare
from sft_atlas.errors import JobError, OutOfMemoryError, StoreError
from sft_atlas.evaluate.canary import check_cell
from sft_atlas.evaluate.evaluate import evaluate_cell
from sft_atlas.identity import payload
from sft_atlas.measure.dataset import measure_dataset
from sft_atlas.measure.drift import measure_drift
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.run.placement import Placement
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import (
    JOB,
    EvaluateJob,
    Job,
    MeasureJob,
    PrepareJob,
    TrainJob,
)
from sft_atlas.study.spec import BenchmarkSpec, CellSpec, ModelSpec
from sft_atlas.train.loop import StopRequested, train

Send = Callable[..., None]
