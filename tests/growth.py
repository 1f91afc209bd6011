"""Watches the memory and the open files of every process of a long training.

    python -m tests.growth

4,000 iterations on 3 ranks with 2 loader workers each, scoring and saving on the way. The first half is warm-up;
after it, resident memory must not go up by more than `--allowed` MB in any process, from the least in the third
quarter to the least in the last, and open files not by more than are in flight between processes. (What is not given
back raises the least, too; peaks come and go with a checkpoint or a connection.) Prints a table; exit status 1 if
something grew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import descendants, kill, loader_workers, parent, start

IMAGES, BATCH, RANKS, WORKERS = 320, 16, 3, 2
PER_EPOCH = IMAGES // BATCH
MB = 2**20
IN_FLIGHT = 4  # files of a batch that a worker hands over: 14 or 16 were seen, at any time


@dataclass(frozen=True)
class Sample:
    """A process at a moment: the iteration that the training was at, resident bytes, open files."""

    iteration: int
    resident: int
    files: int


@dataclass(frozen=True)
class Growth:
    """The least in the third and in the last quarter."""

    resident: tuple[int, int]
    files: tuple[int, int]

    def exceeds(self, allowed: float) -> bool:
        return self.resident[1] - self.resident[0] > allowed * MB or self.files[1] - self.files[0] > IN_FLIGHT


def growth(samples: Sequence[Sample], total: int) -> Growth | None:
    """None for a process that was not seen in both quarters."""
    early = [sample for sample in samples if total / 2 <= sample.iteration < 3 * total / 4]
    late = [sample for sample in samples if 3 * total / 4 <= sample.iteration < total]
    if not early or not late:
        return None
    resident = tuple(min(sample.resident for sample in some) for some in (early, late))
    files = tuple(min(sample.files for sample in some) for some in (early, late))
    return Growth(resident, files)


def look(pid: int, iteration: int) -> Sample | None:
    """None of a process that has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return Sample(iteration, pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")))
    except OSError:
        return None


def trained(out: Path) -> int:
    """The iteration of the record's last whole line; 0 before there is one."""
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return json.loads(lines[-1])["iteration"] if lines else 0


def names(job: int) -> dict[int, str]:
    """What each process of a job is."""
    found = {job: "torchrun"}
    ranks = sorted(pid for pid in descendants(job) if parent(pid) == job)
    for number, rank in enumerate(ranks):
        found[rank] = f"rank {number}"
        found |= {pid: f"rank {number}, worker {i}" for i, pid in enumerate(loader_workers(rank))}
    return found


def watch(folder: Path, iterations: int) -> dict[str, list[Sample]]:
    """Trains so long, and looks at every process twice a second."""
    out, said = folder / "run", folder / "said.txt"
    config = (f"out={out}", f"data.train_images={IMAGES}", f"data.batch_size={BATCH}", f"data.workers={WORKERS}")
    config += ("data.pipeline=workers",)
    config += (f"epochs={iterations // PER_EPOCH}", "average.k=5", "model.width=4", "record.every=10")
    config += ("evaluate.every=5", "checkpoint.every=5", "evaluate.replicas=true")
    job = start(said, *config, ranks=RANKS)
    samples: dict[str, list[Sample]] = {}
    processes: dict[int, str] = {}
    try:
        while job.poll() is None:
            if (iteration := trained(out)) > 0:
                processes = processes or names(job.pid)
                for pid, name in processes.items():
                    if sample := look(pid, iteration):
                        samples.setdefault(name, []).append(sample)
            time.sleep(0.5)
    finally:
        for pid in (job.pid, *descendants(job.pid)) if job.poll() is None else ():
            kill(pid)
    if job.returncode != 0:
        sys.exit(said.read_text())
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--allowed", type=float, default=2.0, help="MB of resident memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        samples = watch(Path(folder), options.iterations)
    rows = {name: growth(own, options.iterations) for name, own in samples.items()}
    expected = 1 + RANKS * (1 + WORKERS)
    seen = {name: row for name, row in rows.items() if row is not None}
    print(
        f"{options.iterations} iterations, {RANKS} ranks, {WORKERS} loader workers each: the least in the third quarter"
    )
    print("and in the last\n\n| process | resident MB | open files |\n|---|---|---|")
    for name, row in seen.items():
        before, after = (size / MB for size in row.resident)
        print(f"| {name} | {before:.1f}, {after:.1f} ({after - before:+.1f}) | {row.files[0]}, {row.files[1]} |")
    if len(seen) < expected:
        sys.exit(f"only {len(seen)} of {expected} processes were there from the third quarter to the last")
    grown = [name for name, row in seen.items() if row.exceeds(options.allowed)]
    sys.exit(f"grew: {', '.join(grown)}" if grown else 0)


if __name__ == "__main__":
    main()
