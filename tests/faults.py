"""Disturbs a training again and again, at random moments, and compares what is left with an undisturbed run.

    python -m tests.faults --kills 100

Each disturbance takes a victim: a rank, a loader worker, torchrun itself or all of them get SIGKILL; the disk is
filled (a small file system of its own); the network between the ranks is cut (a namespace of its own), for seconds or
until they have ended. The last two need root, on Linux.
Before some starts a file of the newest checkpoint is cut short, or has a bit flipped. The job is started again each
time, goes on from its last checkpoint, and must end with the same bits; no start may last longer than its timeout.
One line for each disturbance, and a table of them in the end; exit status 1 on a fault.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import torch

from lookaround_ddp.checkpoint.checkpoints import Checkpoints
from lookaround_ddp.distributed.world import World
from tests.support.processes import alive, command, descendants, kill, loader_workers, parent, start
from tests.support.runs import weights
from tests.support.surroundings import SPACE, fill, surroundings, within

RANKS, WAIT = 3, 20  # seconds that ranks wait for each other
SLACK = 40  # seconds that a job may take beside that to end: the naming of the lost, torchrun's own patience
CONFIG = (
    "data.train_images=320",
    "data.batch_size=16",
    "data.workers=1",
    "data.pipeline=workers",
    "epochs=10",
    "average.k=5",
    "model.width=4",
    "evaluate.every=5",
    "checkpoint.every=0.2",
    "checkpoint.keep=3",
    f"timeout={WAIT}",
)
KILLED, SURROUNDINGS = ("rank", "worker", "torchrun", "all"), ("disk", "network")


class Faults:
    """A training into a folder, which is disturbed until it has been so many times, and then let go."""

    def __init__(self, folder: Path, seed: int, surroundings: bool) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.disk, self.said = folder / "disk", folder / "said.txt"
        self.command = ("ip", "netns", "exec", SPACE) if surroundings else ()
        self.victims = (*KILLED, *SURROUNDINGS) if surroundings else KILLED
        self.next: list[str] = []
        self.seconds: dict[str, list[float]] = defaultdict(list)  # victim -> until nothing of the job was left
        self.ended: dict[str, int] = defaultdict(int)  # victim -> jobs that finished in spite of it
        self.damaged = 0

    def start(self, out: Path) -> subprocess.Popen[str]:
        self.said.write_text("")
        return start(self.said, f"out={out}", *CONFIG, ranks=RANKS, through=self.command)

    def disturb(self, out: Path) -> str:
        """Starts the job, disturbs it, and waits until nothing of it is left; says what was done."""
        damage = self.damage(out) if self.random.random() < 0.3 else ""
        before, whole = newest(out), newest_whole(out)
        job = self.start(out)
        victim = self.choose()
        moment, early = self.random.uniform(0, 3), self.random.random() < 0.2
        hit = f"{victim:8} hit {moment:.1f} s after {'the start' if early else 'a checkpoint'}"
        while job.poll() is None and newest(out) == before and not early:
            time.sleep(0.05)
        time.sleep(moment)
        while job.poll() is None and victim in KILLED and not self.hits(victim, job.pid):
            time.sleep(0.05)  # torchrun, and what it starts, take seconds to be there
        family = descendants(job.pid)
        began, seen, last = time.monotonic(), None, time.monotonic()
        undo = ExitStack()
        self.strike(victim, job.pid, undo)
        lasts = self.random.uniform(1, WAIT / 2) if self.random.random() < 0.5 else WAIT + SLACK
        while job.poll() is None or any(map(alive, family)):
            after = time.monotonic() - began
            progress = (newest(out), self.said.stat().st_size)
            if progress != seen:  # a job that was hit too soon, or for a short while, trains on to its end
                seen, last = progress, time.monotonic()
            if time.monotonic() - last > WAIT + SLACK:
                hanging = {pid: command(pid) for pid in [job.pid, *family] if alive(pid)}
                for pid in hanging:
                    kill(pid)
                raise RuntimeError(f"{hit}: the rest hangs: {hanging}")
            if after > lasts or not any(map(alive, family)):  # torchrun would wait for its own network
                undo.close()
            time.sleep(0.05)
        after = time.monotonic() - began
        undo.close()
        self.check_resumed(before, whole)
        self.seconds[victim].append(after)
        self.ended[victim] += job.returncode == 0
        return f"{hit}; gone in {after:.1f} s{damage}"

    def choose(self) -> str:
        """Each victim once before any comes again."""
        if not self.next:
            self.next = self.random.sample(self.victims, len(self.victims))
        return self.next.pop()

    def strike(self, victim: str, job: int, undo: ExitStack) -> None:
        if victim == "disk":
            undo.callback(fill(self.disk).unlink)
            return
        if victim == "network":
            within("down")
            undo.callback(within, "up")
            return
        chosen = self.hits(victim, job)
        for pid in chosen if victim == "all" else self.random.sample(chosen, min(1, len(chosen))):
            kill(pid)

    def hits(self, victim: str, job: int) -> list[int]:
        """The processes of a job that are such a victim."""
        family = descendants(job)
        ranks = [pid for pid in family if parent(pid) == job and alive(pid) and "lookaround_ddp" in command(pid)]
        workers = [worker for rank in ranks for worker in loader_workers(rank)]
        return {"rank": ranks, "worker": workers, "torchrun": [job], "all": [job, *family]}[victim]

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
        if newest_whole(out) == int(checkpoints[-1].name):
            raise RuntimeError(f"nobody would see that {path} is damaged")
        self.damaged += 1
        return f"; {checkpoints[-1].name}/{path.name} had been damaged"

    def check_resumed(self, newest: int, whole: int) -> None:
        """Nothing beyond the last whole checkpoint was lost, and a damaged one was named."""
        said = self.said.read_text()
        resumed = re.search(r"resumed after iteration (\d+)", said)
        began = "iteration " in said.partition("M parameters")[2]
        if whole and began and not resumed:
            raise RuntimeError(f"began anew, though there was a checkpoint of {whole}")
        if resumed and int(resumed[1]) != whole:
            raise RuntimeError(f"resumed after iteration {resumed[1]}, though there was a checkpoint of {whole}")
        if resumed and whole < newest and f"checkpoint {newest} is damaged" not in said:
            raise RuntimeError(f"checkpoint {newest} was damaged, and the job went on without a word")

    def finish(self, out: Path) -> None:
        job = self.start(out)
        try:
            if job.wait(300) != 0:
                raise RuntimeError(f"the job failed, though nothing was done to it: {self.said.read_text()[-2000:]}")
        finally:
            if job.poll() is None:
                kill(job.pid)

    def table(self) -> str:
        rows = ["| hit | times | the job ended all the same | gone after: median, longest |", "|---|---|---|---|"]
        for victim in sorted(self.seconds, key=[*KILLED, *SURROUNDINGS].index):
            seconds = sorted(self.seconds[victim])
            times = f"{seconds[len(seconds) // 2]:.1f} s, {seconds[-1]:.1f} s"
            rows.append(f"| {victim} | {len(seconds)} | {self.ended[victim]} | {times} |")
        return "\n".join([*rows, f"| checkpoint file, between starts | {self.damaged} | | |"])


def newest(out: Path) -> int:
    """The iteration of the newest checkpoint; 0 without one."""
    path = out / "LATEST"
    return int(path.read_text()) if path.is_file() else 0


def newest_whole(out: Path) -> int:
    """The iteration of the newest checkpoint without damage; 0 without one."""
    checkpoints = Checkpoints(out, 1, World(0, 1, 1, torch.device("cpu"), "none"), print)
    names = [f"replica-{number}.pt" for number in range(3)]
    whole = (each for each in checkpoints.iterations() if checkpoints.inspect(each, names)[1] is None)
    return next(whole, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6, help="how many disturbances")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        with surroundings(folder) as there:
            faults, hits, runs = Faults(folder, options.seed, there), 0, 0
            faults.finish(faults.disk / "undisturbed")
            expected = weights(faults.disk / "undisturbed")
            while hits < options.kills:
                out = faults.disk / f"run-{runs}"
                while hits < options.kills and not (out / "result.json").exists():
                    print(f"{hits + 1:3} run {runs}: {faults.disturb(out)}", flush=True)
                    hits += 1
                faults.finish(out)
                if weights(out) != expected:
                    raise RuntimeError(f"run {runs} ended with other weights than the undisturbed one")
                shutil.rmtree(out)
                runs += 1
            print(faults.table())
            print(f"{hits} disturbances in {runs} runs, all of which ended with the undisturbed bits")
    except RuntimeError as error:
        said = (folder / "said.txt").read_text()[-3000:]
        sys.exit(f"{said}\n{error}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
