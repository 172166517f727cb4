"""How long it takes to find very many small files: ours, the first and the second time, and `datasets`' imagefolder.

PYTHONPATH=. python benchmarks/listing.py [--files 200000] [--folders 100]   (--folders 0: all in one)

Each contestant runs in a process of its own, without the time of its imports. Ours does all that a run does with the
files before it makes its model: list them, read the labels, take the fingerprint, open the images and measure mean and
deviation on a sample. imagefolder only loads. `run` is run_pretrain.py itself, with a tiny model, to its third update:
it tells when the header and the first update were printed.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import pyarrow.parquet

from modeling_mae.data.find.sources import BUNDLED


LINKS = 60_000  # of one file; ext4 allows 65,000
SETTLED = 3  # seconds: the listing of a folder that has just changed is not kept
MIB = 1 << 10  # the system counts in KiB


def make_files(folder: Path, files: int, folders: int) -> None:
    """The bundled images again and again: each is written once and linked from then on."""
    table = pyarrow.parquet.read_table(next(iter(sorted(BUNDLED.rglob("*train*.parquet")))))
    images = table.column("image").combine_chunks().field("bytes")
    originals = folder.parent / "originals"
    originals.mkdir()
    distinct = min(len(images), files)
    for i in range(distinct):
        (originals / f"{i}.png").write_bytes(images[i].as_py())
    for i in range(files):
        place = folder / f"class-{i % folders:03}" if folders else folder
        if i < max(1, folders):
            place.mkdir(parents=True)
        os.link(originals / f"{i % distinct}.png", place / f"{i:07}.png")


def load_ours(folder: str, cache: str) -> tuple[int, str]:
    from modeling_mae.data.find.fingerprint import fingerprint
    from modeling_mae.data.find.sources import SourceSettings, load_source
    from modeling_mae.data.serve.images import Opening, open_images
    from modeling_mae.data.serve.statistics import measure_mean_std
    from modeling_mae.tasks import task_of_labels

    def steps() -> int:
        source = load_source(SourceSettings(train_dir=folder, cache_dir=cache))
        took["listing"] = time.perf_counter() - began
        labels = task_of_labels(source).read(source)[0] if source.label_column else None
        took["labels"] = time.perf_counter() - began
        images = open_images(source, Opening((28, 28), 1), labels)
        measure_mean_std(images)
        fingerprint(source)
        return len(images)

    took, began = {}, time.perf_counter()
    count = steps()
    return count, ", ".join(f"{step} after {seconds:.2f} s" for step, seconds in took.items())


def load_imagefolder(folder: str, cache: str) -> tuple[int, str]:
    import datasets

    datasets.disable_progress_bars()
    return len(datasets.load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=cache)), ""


class Clock(io.StringIO):
    """Takes what is printed, and notes when a line that begins with one of the `words` came."""

    def __init__(self, *words: str):
        super().__init__()
        self.words, self.came, self.began = words, {}, time.perf_counter()

    def write(self, text: str) -> int:
        for word in self.words:
            if text.startswith(word):
                self.came.setdefault(word, time.perf_counter() - self.began)
        return len(text)


def run_command(folder: str, cache: str) -> tuple[int, str]:
    import run_pretrain
    from configuration import PretrainArguments

    model = ["image_size=28", "patch_size=7", "num_channels=1", "hidden_size=16", "num_hidden_layers=2"]
    model += ["num_attention_heads=2", "intermediate_size=32", "decoder_hidden_size=16", "decoder_num_hidden_layers=1"]
    model += ["decoder_num_attention_heads=2", "decoder_intermediate_size=32"]
    with tempfile.TemporaryDirectory() as run, contextlib.redirect_stdout(Clock("model ", "update ")) as clock:
        place = {"train_dir": folder, "cache_dir": cache, "output_dir": run, "report_to": ["none"]}
        length = {"max_train_steps": 3, "total_batch_size": 64, "warmup_epochs": 0.0, "logging_steps": 1}
        run_pretrain.main(PretrainArguments(**place, **length, config_overrides=model))
    return 3 * 64, ", ".join(f"{word.strip()} line after {seconds:.1f} s" for word, seconds in clock.came.items())


def processor_seconds() -> float:
    """Of this process and of those that it has waited for; other work on the machine does not count."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(name: str, folder: str, cache: str, results) -> None:
    contestant = {"ours": load_ours, "imagefolder": load_imagefolder, "run": run_command}[name]
    import datasets  # noqa: F401 - the time of the imports is not the contestant's
    import torch  # noqa: F401

    import modeling_mae.data.serve.statistics  # noqa: F401

    if name == "run":
        import run_pretrain  # noqa: F401

        # As in a process that a user starts: spawned loading workers would import everything again.
        multiprocessing.set_start_method("fork", force=True)

    usage, began, busy = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), processor_seconds()
    count, remark = contestant(folder, cache)
    seconds, busy = time.perf_counter() - began, processor_seconds() - busy
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usage.ru_maxrss) / MIB
    results.put(f"{seconds:8.2f} s, {busy:8.2f} s of a core, {memory:6.0f} MiB more, {count:,} images  {remark}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--contestants", nargs="+", default=["ours", "imagefolder"])
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        make_files(folder, args.files, args.folders)
        time.sleep(SETTLED)
        print(f"{args.files:,} files in {args.folders or 1} folder{'s' * (args.folders > 1)}")
        for name in args.contestants:
            for turn in ("first", "second"):
                results = context.Queue()
                process = context.Process(target=measure, args=(name, str(folder), f"{place}/cache", results))
                process.start()
                print(f"{name:12} {turn:6} {results.get()}", flush=True)
                process.join()


if __name__ == "__main__":
    main()
