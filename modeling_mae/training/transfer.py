"""Brings batches to the device."""

import torch
from accelerate.utils import send_to_device


class Transfer:
    """Copies batches to the device. On CUDA, a separate stream copies them.

    In the stream of the updates, a copy would start after the current update, and the next update would wait for it.
    In a separate stream the device copies while it updates, if the batch is in pinned memory.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.stream is None:
            return send_to_device(batch, self.device, non_blocking=True)
        with torch.cuda.stream(self.stream):
            batch = send_to_device(batch, self.device, non_blocking=True)
        updates = torch.cuda.current_stream(self.device)
        updates.wait_stream(self.stream)
        for tensor in batch.values():
            tensor.record_stream(updates)  # else a later copy could overwrite it before the update has read it
        return batch
