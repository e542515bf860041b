"""How long a forward pass and a training step take on a device, and how much memory they need beyond the weights."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.api import Batch, Inputs, Model, Output, TaskSpec
from bench.train import sum_of


@dataclass(frozen=True)
class Latency:
    """Medians over repeats after a warm-up, for one batch.

    A peak is memory held by tensors beyond weights, optimizer state and the batch: what torch's allocator handed out
    on the device. Scratch memory that a library takes by itself is not seen.
    """

    device: str
    threads: int
    batch_size: int
    repeats: int
    forward_ms: float
    step_ms: float
    forward_peak_mib: float
    step_peak_mib: float


def latency(model: Model, task: TaskSpec, inputs: Inputs, *, warmup: int = 3, repeats: int = 20) -> Latency:
    """Time and peak memory of a forward pass in evaluation and of a training step, on the device of the inputs.

    The step is forward, backward and fused SGD with momentum of the bare fusion and its probes. The model is copied.
    """
    batch = zero_batch(task, inputs)
    device = batch.target.device
    own = copy.deepcopy(model).to(device)
    optimizer = torch.optim.SGD([p for p in own.parameters() if p.requires_grad], lr=1e-3, momentum=0.9, fused=True)

    def forward() -> None:
        with torch.inference_mode():
            own(inputs)

    def step() -> None:
        bare_loss(own, task, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # last, so that gradients are part of a step's peak

    own.eval()
    forward_ms, forward_peak = _timed(forward, device, warmup, repeats)
    own.train()
    step_ms, step_peak = _timed(step, device, warmup, repeats)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Latency(name, torch.get_num_threads(), len(inputs), repeats, forward_ms, step_ms, forward_peak, step_peak)


def _timed(work: Callable[[], None], device: torch.device, warmup: int, repeats: int) -> tuple[float, float]:
    """The median time in ms after a warm-up, and the peak of memory in MiB beyond what was held before."""
    for _ in range(max(1, warmup)):
        work()
    seconds = []
    for _ in range(repeats):
        _finish(device)
        started = time.perf_counter()
        work()
        _finish(device)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds), _peak_bytes(work, device) / 2**20


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - held
    # The resident set says nothing here: it does not shrink, and freed pages are used again without growing it.
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profiler:
        work()
    assert profiler.kineto_results is not None  # set when the profiler ends
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def zero_batch(task: TaskSpec, inputs: Inputs) -> Batch:
    """The inputs with targets of zero."""
    device = next(iter(inputs.values.values())).device
    kind = torch.long if task.kind == "classes" else torch.float32
    zeros = torch.zeros(len(inputs), dtype=kind, device=device)
    return Batch(inputs, zeros, torch.arange(len(inputs), device=device))


def bare_loss(model: Model, task: TaskSpec, batch: Batch) -> Tensor:
    """The loss of a bare fusion and its probes; what strategies add to a loss is a vanishing part of a step."""
    output: Output = model(batch.inputs)
    probes = {f"probe/{m}": task.loss(u, batch.target) for m, u in output.unimodal.get("probe", {}).items()}
    return sum_of({**model.fusion.terms(output, batch), **probes})
