"""PyTorch's side of the comparison: `serve.py GROUP FOLDER THREADS`.

Speaks as our side does (README.md): says what it can do, then does what it is told. Every
operation may have several versions, by name.
"""

import importlib
import json
import sys
import time

import torch
from safetensors.torch import load_file

from tensors import Given, differences

MODULES = {
    "solver": "maps",
    "transformer": "transformer",
    "generation": "generation",
    "mdeq-tiny": "mdeq",
    "mdeq-large": "mdeq",
    "mdeq-imagenet": "mdeq",
    "resnet18": "resnet",
    "resnet101": "resnet",
    "images": "images",
}


def memory(entry):
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(entry + ":"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # Then the peak is that of the whole process.


def main():
    group, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    operations = importlib.import_module(MODULES[group]).operations(Given(folder))
    answers = sys.stdout
    # Libraries may print; answers are lines of their own.
    sys.stdout = sys.stderr

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    answer({
        "operations": [list(versions) for versions in operations],
        "threads": torch.get_num_threads(),
        "version": torch.__version__,
    })
    for line in sys.stdin:
        command, index, version, rest = line.rstrip("\n").split("\t")
        work = operations[int(index)][version]
        if command == "check":
            answer({"errors": differences(load_file(rest), work())})
        else:
            idle = memory("VmRSS")
            reset_peak()
            seconds, processor = [], time.process_time()
            for _ in range(int(rest)):
                started = time.perf_counter()
                outcome = work()
                seconds.append(time.perf_counter() - started)
                del outcome
            answer({
                "seconds": seconds,
                "processor": time.process_time() - processor,
                "idle": idle,
                "peak": memory("VmHWM"),
            })


main()
