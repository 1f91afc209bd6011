"""Every mistake a user can make: one line, from one rank, that names it and the mend; exit status 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lookaround_ddp.cli import main
from tests.support.runs import TINY, Job, train

MISTAKES = {
    "unknown section": (["optimzer.lr=0.1"], "unknown key optimzer: did you mean optimizer?"),
    "unknown key": (["data.batchsize=8"], "unknown key data.batchsize: did you mean data.batch_size?"),
    "a key of a section": (["lr=0.1"], "unknown key lr: did you mean optimizer.lr?"),
    "a key of sections": (["start=1"], "unknown key start: did you mean average.start or trajectory.start?"),
    "wrong type": (["optimizer.lr=fast"], "optimizer.lr is 'fast': should be a valid number"),
    "a bool is no number": (["epochs=true"], "epochs is True: should be a valid integer"),
    "k below 1": (["average.k=0"], "average.k is 0: a round has at least 1 iteration"),
    "k a fraction": (["average.k=1.5"], 'average.k is 1.5: it should be an integer, epoch, "10 epochs" or never'),
    "no replicas": (["replicas=[]"], "replicas: give at least one replica"),
    "unknown model": (["model.name=resnet81"], "unknown model 'resnet81': did you mean resnet8?"),
    "unknown timm model": (["model.name=timm:resnet5O"], "timm has no model 'resnet5O': did you mean resnet50?"),
    "no width": (["model.name=resnet18", "model.width=8"], "for resnet8, resnet14, resnet20, not for resnet18"),
    "no published weights": (["model.pretrained=true"], "no published weights for resnet8"),
    "no weights file": (["model.pretrained=nowhere.pt"], "there is no file nowhere.pt"),
    "unknown dataset": (["data.name=cifar"], "data.name is 'cifar': should be 'digits', 'fashion_mnist', 'cifar10'"),
    "unknown augmentation": (["replicas=[[hflop]]"], "unknown augmentation 'hflop': did you mean hflip?"),
    "unknown argument": (["replicas=[[{rotation: {angle: 3}}]]"], "augmentation rotation with {'angle': 3}"),
    "no such module": (["replicas=[[my.module.Flip]]"], "augmentation my.module.Flip: No module named 'my'"),
    "unknown optimizer": (["optimizer.name=sdg"], "unknown optimizer 'sdg': did you mean sgd?"),
    "an optimizer like no other": (["optimizer.name=q"], "known are adabelief, adadelta, "),
    "unknown optimizer option": (["optimizer.options={beta: 1}"], "optimizer sgd with {'beta': 1"),
    "unknown buffer": (["average.buffers=[nothing]"], "no buffer named 'nothing' in the model"),
    "no Fashion-MNIST": (["data.name=fashion_mnist"], "data.root=DIR says where it is, data.download=true fetches it"),
    "no CIFAR": (["data.name=cifar10"], "data.download=true fetches it"),
    "no folder": (["data.name=imagefolder", "data.root=nowhere"], "imagefolder reads nowhere/train/CLASS/"),
    "lookahead and rounds": (
        ["optimizer.lookahead={}", "average.k=3"],
        "optimizer.lookahead.k is 5 and a round has 3 updates",
    ),
    "lookahead and some rounds": (
        ["optimizer.lookahead={}", "average.k=[[0, epoch], [1, 3]]"],
        "optimizer.lookahead.k is 5 and a round has 3 updates",
    ),
    "a delay and some rounds": (
        ["average.delay=3", "average.k=[[0, epoch], [1, 3]]"],
        "average: delay is 3 and a k is 3: a mean can arrive 0 to k - 1 iterations later",
    ),
    "a warm-up of all iterations": (
        ["iterations=3", "schedule.warmup_epochs=1"],
        "schedule.warmup_epochs is 1.0: it must end before epoch 0.6",
    ),
    "rounds after all iterations": (
        ["iterations=3", "average.k=[[0, 2], [1, 3]]"],
        "average.k is 3 from epoch 1 on: a run of 0.6 epochs ends before",
    ),
    "an average after all iterations": (
        ["iterations=7", "trajectory={name: swa, start: 1}"],
        "are not over when the run ends (after 7, 5 in an epoch)",
    ),
    "more cycles than iterations": (
        ["iterations=3", "snapshots=true", "schedule.cycles=4"],
        "schedule.cycles is 4: the run has no more than 3 iterations",
    ),
    "batch too large": (["data.batch_size=200", "data.drop_last=true"], "more than the 80 training images"),
    "batch of one": (["data.train_images=81"], "an epoch's smallest batch has 1 of 81 images"),
    "too many images": (["data.train_images=2000"], "more than the 1000 training images of digits"),
    "no milestones": (["schedule.name=multistep"], "schedule.milestones is empty"),
    "unsafe layout": (["channels_last=true"], "channels_last on a CPU corrupts memory in stages.1.0.shortcut.0"),
    "unsafe when compiled": (["compile=true"], "compile on a CPU corrupts memory in stages.1.0.shortcut.0"),
    "classes of the trainer": (
        ["model.name=timm:resnet18", "model.options={num_classes: 7}", "model.width=16"],
        "model.options.num_classes would contradict what the trainer sets: the data says how many",
    ),
    "a rate among the options": (
        ["optimizer.options={lr: 1}"],
        "optimizer.options.lr would contradict what the trainer sets: set optimizer.lr",
    ),
    "a key twice": (["optimizer={lr: 0.1, lr: 0.2}"], "lr stands twice, in line 1: keep one of them"),
    "augmentation arguments": (["replicas=[[{mixup: {alpha: -1}}]]"], "alpha is -1: should be greater than"),
    "not key=value": (["a", "b"], "one config at a time: a or b?"),
    "no such config": (["nowhere.yaml"], "config nowhere.yaml: No such file or directory"),
}


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(tmp_path: Path, name: str) -> None:
    overrides, message = MISTAKES[name]
    said = train(tmp_path / "run", *TINY, *overrides, expect=2)
    assert message in said
    assert len(said.splitlines()) == 1, said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "the following arguments are required: COMMAND: see python -m lookaround_ddp --help"),
        (["trian"], "argument COMMAND: invalid choice: 'trian' (choose from "),
        (["train", "--faster"], "unrecognized arguments: --faster: see python -m lookaround_ddp train --help"),
        (
            ["train", "--epochs", "3"],
            "arguments: --epochs (did you mean epochs=3?): see python -m lookaround_ddp train",
        ),
        (["train", "--data.batch-size=8"], "(did you mean data.batch_size=8?)"),
        (["evaluate", "run", "--lr", "0.1"], "(did you mean optimizer.lr=0.1?)"),
        (["bench", "--k", "x"], "argument --k: invalid int value: 'x': see python -m lookaround_ddp bench --help"),
        (["analyze", "plane"], "arguments are required: RUN ... [key.path=value ...]: see "),
    ],
)
def test_words_that_the_command_line_does_not_know(
    said: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(said)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [("- 1\n- 2\n", "expected 'key: value' lines, found a list"), ("a: [", "not YAML"), ("\xff\xfe", "not UTF-8")],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode("latin-1"))
    job = Job("train", str(path))
    assert job.wait() == [2]
    assert message in job.said()


def test_processes_and_replicas_that_do_not_divide(tmp_path: Path) -> None:
    said = train(tmp_path / "run", *TINY, ranks=4, expect=2)
    assert "4 processes cannot share 3 replicas: start at most 3, or a multiple of 3" in said


def test_many_ranks_make_a_mistake_but_one_speaks_first(tmp_path: Path) -> None:
    """A launcher ends the job when rank 0 has spoken; the others would only speak if it had not failed."""
    job = Job("train", f"out={tmp_path}/run", *TINY, "epochs=0", ranks=3)
    assert job.wait() == [2, 2, 2]
    assert job.said(0).startswith("error: epochs is 0")
    assert job.said(1).startswith("rank 1: error: epochs is 0")


def two_nodes(rank: int) -> None:
    os.environ["LOOKAROUND_NODES"] = "2"


def test_fewer_nodes_than_the_launcher_was_told(tmp_path: Path) -> None:
    """torchrun begins without a node that it takes for dead; the result would be that of fewer processes, silently."""
    job = Job("train", f"out={tmp_path}/run", *TINY, prepare=two_nodes)
    assert job.wait() == [2]
    assert job.said().startswith("error: 1 of 2 nodes take part: do their clocks agree?")
    assert not (tmp_path / "run").exists()


def differ(rank: int) -> None:
    """Makes rank 1 read another learning rate than the others."""
    if rank == 1:
        from lookaround_ddp.cli import commands as cli
        from lookaround_ddp.config import load as config_file

        cli.load_config = lambda path, overrides: config_file.load_config(path, [*overrides, "optimizer.lr=0.2"])


def test_configs_that_differ_between_ranks(tmp_path: Path) -> None:
    job = Job("train", f"out={tmp_path}/run", *TINY, ranks=3, prepare=differ)
    assert job.wait() == [2, 2, 2]
    assert "rank 1 has another configuration than rank 0: optimizer.lr: 0.1 -> 0.2" in job.said(0)


def lose_the_data(rank: int) -> None:
    """Makes rank 2 find no dataset, as on a node without the file system."""
    if rank == 2:
        from lookaround_ddp.data import pipeline
        from lookaround_ddp.errors import UserError

        def missing(*_: object) -> None:
            raise UserError("no data here")

        pipeline.open_dataset = missing


def test_a_failure_of_one_rank_ends_all_and_names_it(tmp_path: Path) -> None:
    job = Job("train", f"out={tmp_path}/run", *TINY, ranks=3, prepare=lose_the_data)
    assert job.wait() == [2, 2, 2]
    assert "no data here (rank 2)" in job.said(0)


def test_resuming_with_a_changed_config_says_which_keys(tmp_path: Path) -> None:
    train(tmp_path / "run", *TINY)
    said = train(tmp_path / "run", *TINY, "optimizer.lr=0.2", "average.k=4", expect=2)
    assert "was made with another config (average.k: 3 -> 4; optimizer.lr: 0.1 -> 0.2)" in said
    assert "has finished" in train(tmp_path / "run", *TINY, "data.workers=1", "record.every=7", "checkpoint.every=1")


def picture_folder(root: Path, classes: int) -> Path:
    from PIL import Image

    for split in ("train", "val"):
        for number in range(classes):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for image in range(8):
                Image.new("RGB", (20, 24), (number * 60, image * 20, 50)).save(folder / f"{image}.png")
    return root


def test_a_class_count_that_differs_from_the_checkpoints(tmp_path: Path) -> None:
    two, three = picture_folder(tmp_path / "two", 2), picture_folder(tmp_path / "three", 3)
    folder = ["data.name=imagefolder", "data.size=16", "data.batch_size=8", "epochs=1", "model.width=4"]
    train(tmp_path / "run", *folder, f"data.root={two}")
    said = train(tmp_path / "run", *folder, f"data.root={three}", expect=2)
    assert "has 2 classes, the data has 3" in said
    job = Job("evaluate", str(tmp_path / "run"), f"data.root={three}")
    assert job.wait() == [2]
    assert "has 2 classes, the data has 3" in job.said()


def test_evaluating_what_is_no_finished_run(tmp_path: Path) -> None:
    job = Job("evaluate", str(tmp_path))
    assert job.wait() == [2]
    assert "is not a run folder: there is no config.yaml in it" in job.said()
