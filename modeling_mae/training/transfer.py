"""Brings batches to the device."""

import torch
from accelerate.utils import send_to_device


class Transfer:
    """Copies batches to the device, on CUDA by a stream of its own.

    A copy in the stream of the updates starts only after the update that runs, and the next update waits for it. In a
    stream of its own it goes on beside the update, if the batch lies in pinned memory.
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
            tensor.record_stream(updates)  # else the next copy could take the memory before the update has read it
        return batch
