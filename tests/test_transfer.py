from types import SimpleNamespace

import torch

from modeling_mae.training.transfer import Transfer


def test_a_batch_is_copied_in_a_stream_of_its_own_and_awaited_by_the_updates(monkeypatch):
    """A made-up GPU writes down what it is asked for. tests/test_gpu.py asks a real one."""
    asked = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            asked.append(f"{self.name} begins")

        def __exit__(self, *_):
            asked.append(f"{self.name} ends")

        def wait_stream(self, other):
            asked.append(f"{self.name} waits for {other.name}")

    class Batch(dict):
        def to(self, device, non_blocking):
            asked.append(f"copied to {device}, non-blocking: {non_blocking}")
            tensor = SimpleNamespace(record_stream=lambda stream: asked.append(f"kept for {stream.name}"))
            return {"images": tensor}

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("updates"))
    Transfer(torch.device("cuda", 0))(Batch())
    assert asked == [
        "copies begins",
        "copied to cuda:0, non-blocking: True",
        "copies ends",
        "updates waits for copies",
        "kept for updates",
    ]


def test_on_a_cpu_the_batch_stays_where_it_is():
    images = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    assert Transfer(torch.device("cpu"))({"images": images})["images"].data_ptr() == images.data_ptr()
