"""Resident memory of a training run: does it grow?

Runs run_pretrain.py (a small model on the bundled images, reading every 10 updates, checkpoints and pictures as usual)
and reads the process's resident memory from outside every second. Prints it at intervals and its slope over the second
half of the run (Theil-Sen), per 1,000 updates and for an hour at the run's own speed.

    PYTHONPATH=. python benchmarks/memory.py [--updates 15000]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes


ROOT = Path(__file__).parents[1]
WORDS = """--num_train_epochs 100000 --warmup_epochs 10 --total_batch_size 64 --per_device_train_batch_size 64
--checkpointing_steps 500 --picture_epochs 2 --report_to tensorboard --config_overrides image_size=28 patch_size=7
num_channels=1 hidden_size=32 num_hidden_layers=2 num_attention_heads=2 intermediate_size=64 decoder_hidden_size=32
decoder_num_hidden_layers=1 decoder_num_attention_heads=2 decoder_intermediate_size=64""".split()


def resident(pid: int) -> float:
    """MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=15000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "run_pretrain.py"), "--output_dir", f"{folder}/run"]
        command += ["--max_train_steps", str(args.updates), *WORDS]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        update, lines = 0, []

        def follow() -> None:
            nonlocal update
            for line in process.stdout:
                lines.append(line)
                if match := re.match(r"update (\d+)/", line):
                    update = int(match[1])

        reader = threading.Thread(target=follow)
        reader.start()
        samples = []  # (seconds, update, MB)
        begin = time.perf_counter()
        while process.poll() is None:
            if 0 < update < 0.98 * args.updates:  # what is done after the last update is no growth
                samples.append((time.perf_counter() - begin, update, resident(process.pid)))
            time.sleep(1)
        reader.join()
        if process.returncode:
            sys.exit("".join(lines[-20:]))
    print(f"{'update':>8}{'MB':>8}")
    for _, update, megabytes in samples[:: max(1, len(samples) // 12)]:
        print(f"{update:8}{megabytes:8.0f}")
    seconds, updates, megabytes = np.array(samples[len(samples) // 2 :]).T
    slope = theilslopes(megabytes, updates)[0]  # pictures and checkpoints come and go
    speed = (updates[-1] - updates[0]) / (seconds[-1] - seconds[0])
    hourly = slope * speed * 3600
    print(f"second half: {1000 * slope:+.2f} MB per 1,000 updates, {hourly:+.0f} MB an hour at {speed:.0f} updates/s")


if __name__ == "__main__":
    main()
