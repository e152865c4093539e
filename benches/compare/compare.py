"""Runs the workloads of `just compare` here and in PyTorch, in turn, and writes a table.

Standard library only: the two sides are processes of their own, spoken to line by line.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))

GROUPS = {
    "solver": "Solvers on tanh(z W + x), width 512, 30 evaluations",
    "transformer": "DEQ-Transformer: batch 4, segment 64, memory 64, width 128, heads 4, "
    "inner 512, vocabulary 10,000",
    "mdeq-tiny": "MDEQ CIFAR tiny, batch 8",
    "mdeq-large": "MDEQ CIFAR large, batch 8",
    "mdeq-imagenet": "MDEQ ImageNet-small-jr, one image of 224 by 224",
    "resnet18": "ResNet-18 CIFAR, batch 8",
    "resnet101": "ResNet-101, one image of 224 by 224",
    "generation": "Generation with the DEQ-Transformer",
    "images": "Image loader, two workers, 256 and 224 pixels",
}

# What a card is there for, the figures that matter most first.
ON_CARD = {
    "mdeq-imagenet-32": "MDEQ ImageNet-small-jr, 32 images of 224 by 224",
    "solver": GROUPS["solver"],
    "resnet101-32": "ResNet-101, 32 images of 224 by 224",
    "wikitext-103": "DEQ-Transformer of WikiText-103: batch 14, segment 150, memory 300, "
    "width 700, inner 48,000",
    "mdeq-large-96": "MDEQ CIFAR large, batch 96",
}
ABOUT = GROUPS | ON_CARD

# The largest relative Euclidean distance between the outcomes. README.md says where they come from.
TOLERANCES = {"output": 1e-3, "loss": 1e-4, "gradient": 1e-2}
# A card may round what it multiplies to TF32, 11 bits, which a dozen steps amplify.
TOLERANCES_ON_CARD = {"output": 2e-2, "loss": 2e-3, "gradient": 1e-1}
# Resizing filters differ in how they round to bytes.
TOLERANCES_OF = {"images": {"output": 2e-2}}

MIB = 1 << 20


class Side:
    """One of the two processes."""

    def __init__(self, command, environment):
        self.late = False
        self.errors = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors,
        )
        self.about = self.answer()

    def ask(self, *words, separator):
        try:
            self.process.stdin.write(separator.join(map(str, words)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # The answer says why.
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            if self.late:
                raise RuntimeError("it took longer than --timeout")
            self.errors.seek(0)
            lines = [text.strip() for text in self.errors.read().splitlines() if text.strip()]
            # The panic of a Rust program stands first, the exception of a Python program last.
            panic = next((k for k, text in enumerate(lines) if "panicked at" in text), -3)
            raise RuntimeError("; ".join(lines[panic:][:3]) or "it ended without a word")
        return json.loads(line)

    def kill(self):
        self.late = True
        self.process.kill()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()


class Row:
    """One operation, against one version of the other side."""

    def __init__(self, name, index, version):
        self.name, self.index, self.version = name, index, version
        self.ours, self.theirs = [], []
        # There, here.
        self.peaks, self.processor = [0, 0], [0.0, 0.0]
        self.refused = None
        self.times = 1
        # Seconds of our first call, with compiling and tuning where there is such.
        self.first = None

    def medians(self):
        return statistics.median(self.theirs), statistics.median(self.ours)


class Comparison:
    def __init__(self, options, group, folder):
        environment = dict(os.environ)
        for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[variable] = str(options.threads)
        self.options, self.folder = options, folder
        self.idle = None
        self.tolerances = TOLERANCES_OF.get(group, TOLERANCES)
        if options.device != "flex":
            self.tolerances = TOLERANCES_ON_CARD
        self.here = Side([options.binary, group, folder, options.device], environment)
        serve = os.path.join(HERE, "peer", "serve.py")
        peer = options.peer_device or ("cpu" if options.device == "flex" else "cuda")
        command = [sys.executable, serve, group, folder, str(options.threads), peer]
        try:
            self.there = Side(command, environment)
        except RuntimeError:
            self.here.close()
            raise
        self.timer = threading.Timer(options.timeout or threading.TIMEOUT_MAX, self.kill)
        self.timer.daemon = True
        self.timer.start()
        self.version = self.there.about["version"]
        names = zip(self.here.about["operations"], self.there.about["operations"], strict=True)
        self.rows = [
            Row(name, index, version)
            for index, (name, versions) in enumerate(names)
            for version in versions
        ]

    def check(self):
        """Outcomes must agree before any time is taken."""
        for index in range(len(self.here.about["operations"])):
            answer = self.here.ask("check", index, separator=" ")
            path, first = answer["file"], answer["seconds"]
            for row in (row for row in self.rows if row.index == index):
                row.first = first
                answer = self.there.ask("check", index, row.version, path, separator="\t")
                for name, error in answer["errors"].items():
                    if not error <= self.tolerances[name]:
                        row.refused = f"{name} differs by {error:.1e}"
                say(f"  {row.name} ({row.version}): " + ", ".join(
                    f"{name} {error:.1e}" for name, error in answer["errors"].items()))
            os.remove(path)

    def measure(self):
        """All operations in turn, round by round, so that a slow time of the machine touches all."""
        rows = [row for row in self.rows if not row.refused]
        for row in rows:
            self.turn(row, 1)  # To warm up, and to tell how long it takes.
            row.times = max(1, min(20, int(self.options.turn / max(row.ours + row.theirs))))
            row.ours, row.theirs = [], []
            row.peaks, row.processor = [0, 0], [0.0, 0.0]
        for _ in range(self.options.rounds):
            for row in rows:
                self.turn(row, row.times)
        for row in rows:
            theirs, ours = row.medians()
            say(f"  {row.name} ({row.version}): {theirs * 1e3:.2f} there, {ours * 1e3:.2f} here, "
                f"the first time {row.first:.2f} s")

    def turn(self, row, times):
        here = self.here.ask("time", row.index, times, separator=" ")
        there = self.there.ask("time", row.index, row.version, times, separator="\t")
        row.ours += here["seconds"]
        row.theirs += there["seconds"]
        row.processor[0] += there["processor"]
        row.processor[1] += here["processor"]
        row.peaks = [max(row.peaks[0], there["peak"]), max(row.peaks[1], here["peak"])]
        self.idle = self.idle or [there["idle"], here["idle"]]

    def kill(self):
        self.here.kill()
        self.there.kill()

    def close(self):
        self.timer.cancel()
        self.here.close()
        self.there.close()


def overheads(rows):
    """What a solver adds to the bare maps, as further rows of times alone."""
    maps = {row.name.split(", ")[1]: row for row in rows if " maps, " in row.name}
    for row in rows:
        solver, _, batch = row.name.partition(", ")
        bare = maps.get(batch)
        if " maps" in solver or bare is None or row.refused or bare.refused:
            continue
        theirs, ours = (a - b for a, b in zip(row.medians(), bare.medians()))
        yield f"{row.name}: what it adds", row.version, theirs, ours


def table(results, failures):
    lines = [
        "| workload | peer | there, ms | here, ms | here / there | of the fastest "
        "| of processor time | peak there, MiB | peak here, MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group, comparison in results.items():
        rows = comparison.rows
        idle = " | ".join(f"{bytes / MIB:.0f} before" for bytes in comparison.idle or [0, 0])
        lines.append(f"| **{ABOUT[group]}** | | | | | | | {idle} |")
        for row in rows:
            if row.refused:
                lines.append(f"| {row.name} | {row.version} | not timed: {row.refused} | | | | | | |")
                continue
            theirs, ours = row.medians()
            there, here = row.processor
            processor = f"{here / there:.2f}" if there > 0 else "-"
            peaks = " | ".join(f"{peak / MIB:.0f}" for peak in row.peaks)
            lines.append(
                f"| {row.name} | {row.version} | {number(theirs)} | {number(ours)} "
                f"| {ours / theirs:.2f} | {min(row.ours) / min(row.theirs):.2f} "
                f"| {processor} | {peaks} |"
            )
        for name, version, theirs, ours in overheads(rows):
            ratio = f"{ours / theirs:.2f}" if theirs > 0 else "-"
            lines.append(
                f"| {name} | {version} | {number(theirs)} | {number(ours)} | {ratio} | | | | |"
            )
    lines += [
        f"\n{ABOUT[group]}, our first calls: " + "; ".join(
            f"{row.name} {row.first:.1f} s" for row in comparison.rows if row.first is not None)
        for group, comparison in results.items() if comparison.options.device != "flex"
    ]
    lines += [f"\n{ABOUT[group]}: not compared, {reason}" for group, reason in failures.items()]
    return "\n".join(lines)


def number(seconds):
    milliseconds = seconds * 1e3
    return f"{milliseconds:.2f}" if abs(milliseconds) < 10 else f"{milliseconds:.0f}"


def heading(options, version):
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        processor = names[0] if names else processor
    except OSError:
        pass
    commit = subprocess.run(
        ["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    if options.device != "flex":
        processor += f", {card()} through {options.device}"
    return (
        f"{datetime.date.today()}, commit {commit}, PyTorch {version}, {processor}, "
        f"{options.threads} threads on each side, in turn, medians of {options.rounds} rounds; "
        f"load of the machine before and after: {options.load:.1f}, {os.getloadavg()[0]:.1f}.\n"
    )


def card():
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True).stdout.strip().split("\n")[0]
    except OSError:
        return "a card"


def say(text):
    print(text, file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="just compare", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="groups, or how their names begin; none for all")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 9")
    parser.add_argument("--check", action="store_true", help="compare outcomes, take no time")
    parser.add_argument("--rounds", type=int, help="turns of each side for every operation")
    parser.add_argument("--turn", type=float, default=0.3,
                        help="seconds for which short operations are repeated in a turn")
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    parser.add_argument("--timeout", type=float,
                        help="seconds after which a group is given up, compiling included")
    parser.add_argument("--out", help="the file for the table")
    parser.add_argument("--device", default="flex",
                        help="ours: flex, or cuda, vulkan, rocm, wgpu if compiled in")
    parser.add_argument("--peer-device",
                        help="PyTorch's; cpu for flex and cuda for others if left out")
    parser.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 9)
    usual = GROUPS if options.device == "flex" else ON_CARD
    # A whole name means itself alone.
    options.groups = [
        group for group in ABOUT
        if group in options.names or group in usual
        and any(group.startswith(name) for name in options.names if name not in ABOUT)
    ] or list(usual)
    for name in options.names:
        if not any(group.startswith(name) for group in ABOUT):
            parser.error(f"there is no {name} among {', '.join(ABOUT)}")
    return options


def main():
    options = arguments()
    if options.list:
        for group in options.groups:
            print(f"{group:16} {ABOUT[group]}")
        return
    options.load = os.getloadavg()[0]
    results, failures, disagree, version = {}, {}, [], "?"
    for group in options.groups:
        say(ABOUT[group])
        folder = tempfile.mkdtemp(prefix="deq-compare-")
        try:
            comparison = Comparison(options, group, folder)
            try:
                version = comparison.version
                comparison.check()
                if options.check:
                    disagree += [row for row in comparison.rows if row.refused]
                    continue
                comparison.measure()
                results[group] = comparison
                disagree += [row for row in comparison.rows if row.refused]
            finally:
                comparison.close()
        except RuntimeError as failure:
            failures[group] = failure
            say(f"  not compared: {failure}")
        finally:
            shutil.rmtree(folder)
        if options.out:
            # After every group, so that an interrupted run leaves what it has.
            os.makedirs(os.path.dirname(os.path.abspath(options.out)), exist_ok=True)
            with open(options.out, "w") as file:
                file.write(heading(options, version) + "\n" + table(results, failures) + "\n")
    if options.check:
        for row in disagree:
            say(f"{row.name} ({row.version}): {row.refused}")
    else:
        print(heading(options, version))
        print(table(results, failures))
    sys.exit(1 if disagree or failures else 0)


main()
