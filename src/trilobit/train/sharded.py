"""A model in shards: each process keeps a part of every parameter, its gradient and its moments.

By torch's FSDP2. Before a layer computes, its parts are gathered from all processes, and behind it
let go of again: a BitLinear sees its whole matrix, and mean |W| is that of all of it. What is
saved are the parts, each process its own (torch.distributed.checkpoint), beside the steps that
follow; any number of processes can go on from them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LRScheduler
from transformers.modeling_layers import GradientCheckpointingLayer

from trilobit.nn import bit_linears
from trilobit.train.checkpoint import errno_in, reason_of
from trilobit.train.gathered import gather_codes, plain
from trilobit.train.optimizer import Together, parts_of


@contextmanager
def joined() -> Iterator[None]:
    """Leave the other processes at the end; of one that is alone, make a group of itself before."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Sharded:
    """A model whose parts lie with all processes of a run, and its checkpoints.

    Made of a whole model that all of them have alike, which it changes. All of them must call
    what is called here, in the same order.
    as_codes: gather ternary matrices so, and not as floats.
    """

    def __init__(self, model: Any, device: torch.device, *, as_codes: bool) -> None:
        self._model = model
        self._whole: Any = _without_numbers(model) if dist.get_rank() == 0 else None
        if as_codes:
            measure = gather_codes(model)
            model.register_forward_pre_hook(lambda *_: measure())
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        # Its messages must not mix with those of the steps that are made meanwhile.
        self._group = dist.new_group(backend="gloo")
        self._written: Future[object] | None = None

    def save(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        folder: Path,
        publish: Callable[[], object],
    ) -> None:
        """Begin to write a checkpoint's shards to a folder, with its numbers of now.

        publish: what the first process does when all of them are there.
        """
        written: Any = async_save(
            self._parts(optimizer, schedule), checkpoint_id=folder, process_group=self._group
        )
        self._written = written
        if dist.get_rank() == 0:
            behind = ThreadPoolExecutor(1)
            self._written = behind.submit(lambda: (written.result(), publish()))
            behind.shutdown(wait=False)

    def size_bytes(self, optimizer: torch.optim.Optimizer) -> int:
        """Of a checkpoint, all parts together; about."""
        states = (state for part in parts_of(optimizer) for state in part.state.values())
        moments = (x for state in states for x in state.values() if isinstance(x, torch.Tensor))
        numbers = (*self._model.parameters(), *moments)
        return sum(one.numel() * one.element_size() for one in numbers)

    def finish(self) -> None:
        """Wait until the last checkpoint is whole. Raises OSError when it cannot be written."""
        written, self._written = self._written, None
        if written is None:
            return
        try:
            written.result()
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if isinstance(cause, OSError):
                raise cause from error
            raise OSError(errno_in(str(cause)), reason_of(cause)) from error

    def load(self, optimizer: torch.optim.Optimizer, schedule: LRScheduler, folder: Path) -> None:
        """Take what `save` wrote, on whatever number of processes."""
        state = self._parts(optimizer, schedule)
        load(state, checkpoint_id=folder, process_group=self._group)
        set_state_dict(
            self._model,
            parts_of(optimizer),
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        if isinstance(optimizer, Together):
            optimizer.share_groups()
        schedule.load_state_dict(state["schedule"])

    def whole(self) -> Any:
        """The model in one piece, on the CPU; None but for the first process."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self._model, options=options)
        whole = self._whole
        if whole is None:
            return None
        whole.load_state_dict(state, assign=True)
        whole.tie_weights()
        # What has changed of it since.
        whole.config, whole.generation_config = self._model.config, self._model.generation_config
        layers = dict(bit_linears(whole))
        for name, layer in bit_linears(self._model):
            layers[name].activations = layer.activations
        return whole

    def _parts(self, optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> dict[str, Any]:
        self._model.reshard()  # which is not behind an evaluation
        weights, moments = get_state_dict(self._model, parts_of(optimizer))
        weights = {name: plain(weight) for name, weight in weights.items()}
        return {"model": weights, "optimizer": moments, "schedule": schedule.state_dict()}


def _without_numbers(model: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory."""
    with torch.device("meta"):
        memo = {
            id(p): nn.Parameter(torch.empty_like(p), p.requires_grad) for p in model.parameters()
        }
    return copy.deepcopy(model, memo)
