"""Several processes, as `accelerate launch` starts them: which one this is."""

import os

import torch

from efface.models.model import Model


def processes(model: Model) -> tuple[int, int]:
    """Return (rank, processes), which is (0, 1) unless `accelerate launch` started several.

    In that case the model moves to the device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1
    from accelerate import PartialState

    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    state = PartialState(cpu=forced or not torch.cuda.is_available())
    model.pipe.to(state.device)
    return state.process_index, state.num_processes
