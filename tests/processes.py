"""What tests of several processes share, and what they run in them (as a script): steps in float64, whole runs.

``python tests/processes.py SET FOLDER`` forks two processes, which cost no second start of PyTorch, and leaves there
what the tests look at.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from conftest import make_pictures
from runs import CPU, new_trainer, open_set, tiny_config
from torch.distributed import TCPStore

from dnnlib import UserError
from ldm.batches import LatentData
from ldm.presets import resolve
from ldm.trainer import Trainer as LatentTrainer
from metrics import detectors
from torch_utils import distributed, exchange
from torch_utils.feature_store import FeatureStore
from torch_utils.rng import generator
from torch_utils.stats import Collector
from training.conditioning.base import Batch
from training.loader import batches
from training.run_state import list_snapshots
from training.training_loop import Trainer

BATCH = 8
# Between them, all draws and all statistics over a batch that presets have; the first two are quick.
CASES: dict[str, dict[str, Any]] = {
    "dicgan_demo": {"encoder": "joint", "sigma": "uniform:0.9", "info_weight": 1.0, "cond": True, "d_noise": "feature"},
    "stylegan2_ada_demo": {},
    "icgan_demo": {"cond": True, "neighbors": 3, "info_weight": 1.0},
    "diffusiongan_pixel_demo": {"generator": "stylegan2"},
    "fastgan_original_demo": {"d_noise": "pixel"},
}
QUICK = list(CASES)[:2]
WHOLE = os.environ.get("TEST_MATRIX") == "whole"
TOGETHER = {"stylegan2_ada_demo": 8}  # images of all processes in a pass; its minibatch statistic takes groups of 4
# A run of five steps; its statistics are merged, and it is saved, after every second one.
RUN = ["--cfg", "stylegan2_ada_demo", "--cbase", "256", "--cmax", "8", "--batch", "8", "--kimg", "0.04", "--tick",
       "0.016", "--snap", "1", "--keep", "0", "--device", "cpu"]
IN_TRAINING = ["--metrics", "fid20_full,pr12n3_full"]
MEASURED = ["--metrics", "fid40_full,fid24,kid_full,pr30n3_full", "--batch", "7", "--device", "cpu", "--network"]
DRAWN = ["--seeds", "3-12", "--batch", "3", "--device", "cpu", "--network"]


class DoubleRows(FeatureStore):
    """Features in float64, as the networks of a test want them."""

    def __getitem__(self, indices: np.ndarray | torch.Tensor) -> torch.Tensor:
        return super().__getitem__(indices).double()


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """New tensors of no stated type are float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def double_trainer(cfg: str, path: Path, run_dir: Path, device: torch.device = CPU) -> Trainer:
    """A tiny trainer in float64 on `BATCH` images, of which all processes together see `TOGETHER` (4) at a time."""
    dataset = open_set(path, cfg, **CASES[cfg])
    config = tiny_config(cfg, dataset, **CASES[cfg], batch=BATCH, batch_gpu=TOGETHER.get(cfg, 4) // distributed.world(),
                         amp="off")
    trainer = new_trainer(config, dataset, run_dir, device=device)
    run = trainer.run
    for net in (run.G, run.D, run.G_ema):
        net.double()
    if (table := run.conditioning.table) is not None:
        table.rows = DoubleRows(table.rows.array)
    if hasattr(run.d_noise, "p"):
        run.d_noise.p = 0.5
        run.d_noise._renew()
    if getattr(run.loss, "ada", None) is not None:
        run.loss.ada.pipeline.p = 0.7
    return trainer


def recorded(optimizer: torch.optim.Optimizer, gradients: list[list[torch.Tensor]]) -> None:
    """Makes `optimizer` add the gradients of each of its steps to `gradients`."""
    def record(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
        gradients.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]
                          if p.grad is not None])

    optimizer.register_step_pre_hook(record)


def gan_step(cfg: str, path: Path, run_dir: Path, device: torch.device = CPU) -> dict[str, Any]:
    """The gradients of every phase of a step, and what the run is after it."""
    trainer = double_trainer(cfg, path, run_dir, device)
    gradients: list[list[torch.Tensor]] = []
    with float64():
        run, options = trainer.run, trainer.options
        for optimizer in (run.opt_G, run.opt_D):
            recorded(optimizer, gradients)
        batch = next(batches(trainer.dataset, BATCH, options.seed, 0, device, 0, run.conditioning.pair,
                             distributed.share()))
        trainer.iteration(Batch(batch.img.double(), batch.labels, batch.indices, batch.draws), int(options.batch_gpu))
        exchange.merge_statistics(run.collector)
        state = run.state_dict()
    return {"gradients": gradients, "draws": batch.draws,
            **{name: state[name] for name in ("G", "D", "G_ema", "d_noise", "loss", "collector")}}


def ldm_step() -> dict[str, Any]:
    """The gradient of a step of latent diffusion, with dropout and hidden classes, and its measure on held-out data."""
    rng = generator("latents")
    data = LatentData(torch.randn(60, 5, 1, 1, generator=rng), torch.arange(60), {}, torch.arange(60) % 3)
    config = {**resolve("mlp", (5, 1, 1), {"batch": BATCH}), "seed": 0, "minutes": None}
    config["net"] |= {"width": 16, "layers": 2, "dropout": 0.5, "classes": 3}
    config["label_dropout"] = 0.5
    trainer = LatentTrainer(config, data, CPU)
    trainer.net.double()
    trainer.ema.double()
    trainer.test = replace(trainer.test, x=trainer.test.x.double(), eps=trainer.test.eps.double())
    gradients: list[list[torch.Tensor]] = []
    recorded(trainer.optimizer, gradients)
    with float64():
        trainer.step()
        return {"gradients": gradients, "heldout": trainer.evaluate(), "net": trainer.net.state_dict()}


def quick_detector(name: str, file: str | None, device: torch.device) -> detectors.Detector:
    """Stands in for EfficientNet-Lite2, which isn't what is tested here."""
    weights = torch.randn(3 * 8 * 8, 6, generator=generator("detector")) / 200
    return detectors.Detector(name, "projection", "0" * 64, 6, 8, device, lambda x: (x.flatten(1) / 10) @ weights)


def shared_work() -> dict[str, Any]:
    """What this process gets of work that is dealt out, and the error of one of them."""
    rank = distributed.rank()

    def make(number: int) -> tuple[int, int]:
        if number == 6:
            raise UserError(f"number 6 fails on {rank}")
        return number, rank

    found = {"made": list(exchange.dealt(exchange.Numbered(5, make)))}
    try:
        list(exchange.dealt(exchange.Numbered(9, make)))
    except UserError as error:
        found["problem"] = error.message
    return found


def exchanges() -> dict[str, Any]:
    """What the functions of `torch_utils.distributed` make of each process's values."""
    rank = distributed.rank()
    collector = Collector()
    collector.report("x", torch.tensor([1.0 + rank, 3.0]))
    exchange.merge_statistics(collector)
    gradients = [torch.tensor([[2.0, 4.0 * rank]]), torch.tensor(6.0)]
    problem = exchange.average_gradients(gradients, "it rains" if rank else None)
    return {"rows": exchange.gather_rows(torch.arange(4).reshape(2, 2) + 10 * rank),
            "any": list(distributed.any_true(rank == 1, False)), "least": distributed.least(5 - rank),
            "first": distributed.from_first(lambda: f"of {rank}"), "gradients": gradients, "problem": problem,
            "merged": collector.state_dict()}


def two_processes(work: Callable[[int], None], **environment: str) -> None:
    """`work(rank)` in two forked processes that find each other as torchrun's do; AssertionError if one fails."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
                               "TORCHELASTIC_USE_AGENT_STORE": "True", **environment}
                work(rank)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0], codes


def script(command: click.Command, *args: str | Path, code: int = 0) -> Callable[[int], None]:
    """A script as the work of a process; AssertionError unless it ends with `code`."""
    def work(rank: int) -> None:
        ended: Any = 0
        try:
            command([str(arg) for arg in args])
        except SystemExit as end:
            ended = end.code
        assert ended == code, ended
    return work


def main(path: Path, folder: Path) -> None:
    """Everything that the tests look at, under `folder`."""
    import train
    from pg_modules.backbones import load_backbone

    importlib.import_module("torch.utils.tensorboard")  # once, before processes part
    load_backbone("tf_efficientnet_lite0")

    def steps(rank: int) -> None:
        with distributed.joined("cpu"):
            found = {cfg: gan_step(cfg, path, folder / str(rank)) for cfg in (CASES if WHOLE else QUICK)}
            torch.save({**found, "ldm": ldm_step(), "exchanges": exchanges(), "shared": shared_work()},
                       folder / f"steps{rank}.pt")

    trained = Trainer.train

    def train_and_tell(self: Trainer) -> bool:
        finished = trained(self)
        torch.save(self.run.progress, self.run_dir / f"progress{distributed.rank()}.pt")
        return finished

    Trainer.train = train_and_tell
    detectors.load_detector = quick_detector
    os.environ["DICGAN_CACHE"] = str(folder / "cache")
    two_processes(steps)
    new = ["--data", path, *RUN, "--outdir"]
    whole = script(train.main, *new, folder / "whole", *IN_TRAINING)
    two_processes(whole, TORCHELASTIC_RUN_ID="whole")
    two_processes(whole, TORCHELASTIC_RUN_ID="whole", TORCHELASTIC_RESTART_COUNT="1")
    two_processes(script(train.main, *new, folder / "parts", "--kimg", "0.024"))
    (run_dir,) = (folder / "parts").iterdir()
    shutil.copytree(run_dir, folder / "alone")
    two_processes(script(train.main, "--resume", run_dir, "--kimg", "0.04"))
    script(train.main, "--resume", folder / "alone", "--kimg", "0.04", "--device", "cpu")(0)
    measure_and_draw(list_snapshots(run_dir)[-1], path, folder)


def measure_and_draw(network: Path, path: Path, folder: Path) -> None:
    """Both scripts by one process and by two, the second time from the cache, and what isn't to be had."""
    import calc_metrics
    import gen_images

    broken = make_pictures(folder / "broken", 6, 24)
    (broken / "picture005.png").write_bytes(b"no picture")
    shutil.rmtree(folder / "cache")
    for name, run in (("one", lambda work: work(0)), ("two", two_processes), ("again", two_processes)):
        run(script(calc_metrics.main, *MEASURED, network, "--outdir", folder / name,
                   *(["--no-cache"] if name == "one" else [])))
        run(script(gen_images.main, *DRAWN, network, "--outdir", folder / name / "images", "--grid",
                   folder / name / "grid.png"))
    for args in (["compare", broken, path, "--batch", "1", "--metrics", "fid_full", "--device", "cpu"],
                 [*MEASURED, folder / "nowhere.pkl"]):
        two_processes(script(calc_metrics.main, *args, code=2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
