"""Kills a training again and again, at random moments, and compares what is left with an undisturbed run.

    python -m tests.faults --kills 100

Each kill takes a random victim with SIGKILL: a rank, a loader worker, torchrun itself, or all of them. Between kills
a file of the newest checkpoint may be cut short, or have a bit flipped. The job is started again each time, and must
end with the same bits; no start may last longer than its timeout. One line for each kill; exit status 1 on a fault.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.processes import alive, descendants, kill, parent, start
from tests.runs import weights

RANKS, WAIT = 3, 25  # seconds that ranks wait for each other
CONFIG = (
    "data.train_images=320",
    "data.batch_size=16",
    "data.workers=1",
    "epochs=10",
    "average.k=5",
    "model.width=4",
    "evaluate.every=5",
    "checkpoint.every=0.2",
    "checkpoint.keep=3",
    f"timeout={WAIT}",
)
VICTIMS = ("rank", "worker", "torchrun", "all")


class Faults:
    """A training into a folder, which is disturbed until it has been killed so many times, and then let go."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.fates: Counter[str] = Counter()

    def start(self, out: Path) -> subprocess.Popen[str]:
        return start(self.folder / "said.txt", f"out={out}", *CONFIG, ranks=RANKS)

    def disturb(self, out: Path) -> str:
        """Starts the job, kills some of it, and waits until nothing of it is left; says what was done."""
        job = self.start(out)
        victim = self.random.choice(VICTIMS)
        moment, early = self.random.uniform(0, 6), self.random.random() < 0.2
        before = newest(out)
        while job.poll() is None and newest(out) == before and not early:
            time.sleep(0.05)
        time.sleep(moment)
        family = descendants(job.pid)
        ranks = [pid for pid in family if parent(pid) == job.pid]
        workers = [pid for pid in family if parent(pid) in ranks]
        chosen = {"rank": ranks, "worker": workers, "torchrun": [job.pid], "all": [job.pid, *family]}[victim]
        for pid in chosen if victim == "all" else self.random.sample(chosen, min(1, len(chosen))):
            kill(pid)
        began = time.monotonic()
        while job.poll() is None or any(map(alive, family)):
            if time.monotonic() - began > WAIT + 40:
                raise RuntimeError(f"{victim} killed after {moment:.1f} s: the rest hangs: {[*filter(alive, family)]}")
            time.sleep(0.05)
        fate = "had ended" if not chosen else "ended" if job.returncode == 0 else "died"
        self.fates[f"{victim}: {fate}"] += 1
        damage = self.damage(out) if self.random.random() < 0.3 else ""
        after = time.monotonic() - began
        since = "the start" if early else "a checkpoint"
        return f"{victim:8} killed {moment:.1f} s after {since}; gone in {after:.1f} s{damage}"

    def damage(self, out: Path) -> str:
        """Cuts a file of the newest checkpoint short, or flips one of its bits; it must not be trained on."""
        checkpoints = sorted((out / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
        if len(checkpoints) < 2 or (out / "result.json").exists():
            return ""
        path = self.random.choice(sorted(checkpoints[-1].iterdir()))
        content = bytearray(path.read_bytes())
        place = self.random.randrange(len(content))
        if self.random.random() < 0.5:
            content = content[:place]
        else:
            content[place] ^= 1 << self.random.randrange(8)
        path.write_bytes(content)
        self.fates["checkpoint damaged"] += 1
        return f"; {checkpoints[-1].name}/{path.name} damaged"

    def finish(self, out: Path) -> None:
        job = self.start(out)
        try:
            if job.wait(300) != 0:
                raise RuntimeError(f"the undisturbed job failed: {(self.folder / 'said.txt').read_text()[-2000:]}")
        finally:
            if job.poll() is None:
                kill(job.pid)


def newest(out: Path) -> str:
    path = out / "LATEST"
    return path.read_text().strip() if path.is_file() else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    faults = Faults(folder, options.seed)
    try:
        faults.finish(folder / "undisturbed")
        expected, kills, runs = weights(folder / "undisturbed"), 0, 0
        while kills < options.kills:
            out = folder / f"run-{runs}"
            while kills < options.kills and not (out / "result.json").exists():
                print(f"{kills + 1:3} run {runs}: {faults.disturb(out)}", flush=True)
                kills += 1
            faults.finish(out)
            if weights(out) != expected:
                sys.exit(f"run {runs} ended with other weights than the undisturbed one: see {folder}")
            shutil.rmtree(out)
            runs += 1
        print(f"{kills} kills in {runs} runs, all of which ended with the undisturbed bits: {dict(faults.fates)}")
    except RuntimeError as error:
        sys.exit(f"{error}\nsee {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
