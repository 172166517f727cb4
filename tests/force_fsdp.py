"""A script under FSDP on CPUs: SCRIPT, then its arguments; to be started by `accelerate launch` with FSDP asked for.

Accelerate shards models on accelerators only. On CPUs it lets DDP run in place of FSDP. Here it is told that the
processes, which are joined by gloo, are those of several GPUs. All that follows is FSDP as it is.
"""

import os
import runpy
import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType


start = PartialState.__init__


def start_sharded(self, *arguments, **options):
    start(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = start_sharded
sys.argv = sys.argv[1:]
sys.path[0] = os.getcwd()  # in place of this file's folder, as if the script had been started
runpy.run_path(sys.argv[0], run_name="__main__")
