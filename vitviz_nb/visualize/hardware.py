"""What gradient ascent asks of the machine: batch size, precision and cores, which change speed and rounding and nothing else."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy

import torch

from ..models.vision_model import VisionModel

SMALL = 2**15  # pixels in a step, all views together: 8 images of 64 px (tests/benchmarks/README.md, Interaction)
VIEWS = {"cpu": 16, "mps": 64, "cuda": 512}  # of up to 64 px in a pass; on a CPU more are no faster, only larger

try:
    _set_own_threads = ctypes.CDLL(None).omp_set_num_threads
except (OSError, TypeError, AttributeError):  # Windows, or a torch without OpenMP
    _set_own_threads = None


def batch_size(model: VisionModel, copies: int) -> int:
    """Number of images, each with ``copies`` views, optimized together, by the memory that such machines have."""
    views = VIEWS.get(model.device.type, 64)
    if model.device.type == "cpu":  # where running out of memory kills the kernel instead of raising an error
        views *= min(1.0, (64 / model.image_size) ** 2)
    return max(1, int(views / copies))


@contextmanager
def one_core_where_that_is_faster(pixels: int) -> Iterator[None]:
    """Small steps in another thread than the main one, as the Explorer's, are computed by that thread alone.

    OpenMP has workers for each thread, and waking them takes longer than a small operation: 43 instead of 17 ms a step for one
    picture of emoji-vit on two cores. Its own function sets the number for this thread only; torch.set_num_threads also sets it
    for threads that begin meanwhile, and would change how their sums are rounded.
    """
    threads = torch.get_num_threads()
    if threads == 1 or pixels > SMALL or threading.current_thread() is threading.main_thread() or not _set_own_threads:
        yield
        return
    _set_own_threads(1)
    try:
        yield
    finally:
        _set_own_threads(threads)


def ascent_precision(device: torch.device) -> torch.dtype:
    """Of the network during ascent: bfloat16 on cards that have it (compute capability 8), float16 on older ones, or float32."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def rounded(model: VisionModel, precision: torch.dtype) -> VisionModel:
    """A copy of the model in ``precision``, for gradients; the model itself where that is float32.

    On a GPU it halves the memory moved. Images, loss, curves and scores stay in float32.
    """
    if precision is torch.float32:
        return model
    network = copy(model)
    with model.lock:
        network.module = deepcopy(model.module).to(precision)
    return network


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error)  # Apple's and the CPU's allocators raise a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
