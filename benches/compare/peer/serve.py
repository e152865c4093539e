"""PyTorch's side of the comparison: `serve.py GROUP FOLDER THREADS DEVICE`.

Speaks as our side does (README.md): says what it can do, then does what it is told. Every
operation may have several versions, by name.
"""

import importlib
import json
import sys
import time

import torch

from tensors import Given, differences, load

MODULES = {
    "solver": "maps",
    "transformer": "transformer",
    "wikitext-103": "transformer",
    "generation": "generation",
    "mdeq-tiny": "mdeq",
    "mdeq-large": "mdeq",
    "mdeq-large-96": "mdeq",
    "mdeq-imagenet": "mdeq",
    "mdeq-imagenet-32": "mdeq",
    "resnet18": "resnet",
    "resnet101": "resnet",
    "resnet101-32": "resnet",
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
    group, folder, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.set_default_device(device)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    on_card = device != "cpu"
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
            answer({"errors": differences(load(rest), work())})
        else:
            idle = memory("VmRSS")
            reset_peak()
            if on_card:
                torch.cuda.reset_peak_memory_stats()
            seconds, processor = [], time.process_time()
            for _ in range(int(rest)):
                started = time.perf_counter()
                outcome = work()
                if on_card:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - started)
                del outcome
            answer({
                "seconds": seconds,
                "processor": time.process_time() - processor,
                "idle": idle,
                "peak": torch.cuda.max_memory_allocated() if on_card else memory("VmHWM"),
            })


main()
