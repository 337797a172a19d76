"""From a snapshot of the official Projected GAN or StyleGAN2-ADA to a checkpoint of this project."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib import UserError, construct, content_hash
from torch_utils import checkpoint
from torch_utils.inert_data import Damaged, Inert, printable
from torch_utils.inert_files import read_inert
from torch_utils.inert_torch import Tensor
from training.official.build import generator_state, whole_state
from training.official.discriminators import DPlan, plan_discriminator
from training.official.generators import Plan, plan_generator
from training.official.names import Rename, misfit, own_names
from training.official.networks import Foreign, Network, is_network, read_network
from training.resolve import resolve

UNKNOWN = "unknown"
# Tables with a row per label, of which the official FastGAN and D have 1000 for any number of labels.
LABEL_TABLE = re.compile(r"embed\.embeds\.label\.weight|heads\.\d\.project\.project\.label\.embed\.weight")


@dataclass
class Import:
    """What was found in a snapshot, and what becomes of it.

    path, sha256   of the file
    networks       G_ema, and G and D where there are some
    generator, discriminator  how they are built here; no discriminator = it is absent, or of another kind
    config         the configuration of a run with these networks
    own            their tensors, by network and by our names
    cur_nimg       images seen, 0 where the file doesn't say so
    trained_on     path of the training set, where the file says so
    notes          what a user should know
    """

    path: Path
    sha256: str
    networks: dict[str, Network]
    generator: Plan
    config: dict[str, Any]
    own: dict[str, dict[str, Tensor]]
    cur_nimg: int
    trained_on: str | None
    notes: list[str]
    discriminator: DPlan | None = None

    @property
    def left_out(self) -> set[str]:
        """Networks of the file that aren't imported."""
        out = {"G"} if self.own["G"] is self.own["G_ema"] else set()
        return (out | (set() if self.discriminator else {"D"})) & set(self.networks)

    @property
    def options(self) -> dict[str, Any]:
        """Keys of the preset table that make these networks."""
        of_d = self.discriminator.options if self.discriminator else {}
        return {**self.generator.options, **of_d, "cond": bool(self.generator.classes)}


def import_official(path: str | os.PathLike, dest: str | os.PathLike) -> Import:
    """Reads the snapshot `path`, without running any of it, and writes the checkpoint `dest`.

    Raises `UserError` for files that are no such snapshot or ask for more than data, for generators that this project
    doesn't have, and for a `dest` that exists.
    """
    if os.path.exists(dest):
        raise UserError(f"--dest {dest} exists; choose another name.")
    content = read_inert(path)
    try:
        result = _understand(Path(path), content)
        make = generator_state if result.discriminator is None else whole_state
        state = make(result.config, result.own, result.cur_nimg)
    except Damaged as error:
        raise UserError(f"{path} is damaged ({error}); download it again.") from error
    checkpoint.save(dest, "gan", {**state, "imported": {
        "file": result.path.name, "sha256": result.sha256, "trained_on": result.trained_on,
        "networks": {name: net.title for name, net in result.networks.items()}}})
    return result


def _understand(path: Path, content: Any) -> Import:
    """Recognises the networks and finds the configuration that builds them."""
    networks = {name: read_network(value) for name, value in _networks(path, content).items()}
    for name, net in networks.items():
        if sum(tensor.size for tensor in net.tensors.values()) > path.stat().st_size:
            raise Damaged(f"tensors of {name} that are larger than the file")
    notes = []
    if "G_ema" not in networks:
        notes.append("the file has no G_ema; its G takes that place")
        networks["G_ema"] = networks["G"]
    try:
        generator = plan_generator(networks["G_ema"])
        config = _config(path, content, generator)
        own = {"G_ema": _adopt(config["G"], networks["G_ema"], generator.rename, generator.classes)}
    except (Foreign, UserError) as error:
        raise UserError(f"{path}: its generator can't be imported: {str(error).rstrip('.')}.") from error
    trained_on = training_set(content).get("path")
    result = Import(path, content_hash(path), networks, generator, config, own, _cur_nimg(content),
                    printable(trained_on) if isinstance(trained_on, str) else None,
                    notes + [f"G_ema: {note}" for note in generator.notes])
    _add_raw_generator(result)
    _add_discriminator(result, content)
    return result


def _networks(path: Path, content: Any) -> dict[str, Inert]:
    """The generators and the discriminator by name; `UserError` for files of other kinds."""
    if is_network(content):
        return {"G_ema": content}
    if isinstance(content, dict):
        form = content.get("format")
        if isinstance(form, str) and form.startswith("dicgan-"):
            raise UserError(f"{path} already is a checkpoint of this project; use it as it is, for example with "
                            f"gen_images.py --network {path}.")
        found = {name: content[name] for name in ("G", "D", "G_ema") if is_network(content.get(name))}
        if "G" in found or "G_ema" in found:
            return found
        if _only_tensors(content):
            raise UserError(f"{path} holds tensors alone (a state dict), which don't say what network they belong to; "
                            "give the snapshot that they were taken from (network-snapshot-*.pkl).")
    if isinstance(content, (list, tuple)) and any(
            isinstance(value, Inert) and value.kind.module.startswith("dnnlib.tflib") for value in content):
        raise UserError(f"{path} is a snapshot of StyleGAN in TensorFlow; convert it to PyTorch first, with legacy.py "
                        "of stylegan2-ada-pytorch.")
    raise UserError(f"{path} holds no generator named G or G_ema; give a network-snapshot-*.pkl of the official "
                    "Projected GAN or StyleGAN2-ADA (PyTorch).")


def _only_tensors(values: Mapping[Any, Any]) -> bool:
    """Whether these are tensors, or one level of named sets of tensors."""
    inner = (part for value in values.values() for part in (value.values() if isinstance(value, dict) else (value,)))
    some = list(itertools.islice(inner, 10_000))
    return bool(some) and all(isinstance(part, Tensor) for part in some)


def _cur_nimg(content: Any) -> int:
    """Images seen, where the snapshot says so; 0 otherwise."""
    progress = content.get("progress") if isinstance(content, dict) else None
    value = progress.get("cur_nimg", 0) if isinstance(progress, dict) else 0
    if isinstance(value, Tensor) and value.count == 1 and not value.storage.dtype.is_floating_point:
        value = int(value.values().reshape(()))
    return value if type(value) is int and 0 <= value < 1 << 50 else 0


def training_set(content: Any) -> dict[Any, Any]:
    """Options of the training set that the snapshot names."""
    options = content.get("training_set_kwargs") if isinstance(content, dict) else None
    options = {**options.items, **options.state} if isinstance(options, Inert) else options
    return options if isinstance(options, dict) else {}


def _config(path: Path, content: Any, generator: Plan, plan: DPlan | None = None) -> dict[str, Any]:
    """The configuration of a run that would have these networks; its data set is unknown."""
    data = {"path": f"an unknown data set (imported from {path.name})", "name": UNKNOWN, "aspect": [1, 1],
            "resolution": generator.resolution, "channels": generator.channels, "num_images": 0,
            "label_dim": generator.classes, "fingerprint": UNKNOWN}
    options = {**generator.options, **(plan.options if plan else {}), "cond": bool(generator.classes),
               "mirror": training_set(content).get("xflip") is True}
    config = resolve(plan.presets[generator.generator] if plan else generator.generator, options, data)
    return {**config, "D": {**config["D"], **plan.config} if plan else {}}


def _adopt(spec: Mapping[str, Any], net: Network, rename: Rename, classes: int) -> dict[str, Tensor]:
    """Tensors of `net` by our names, once it is certain that they fill the network of `spec`; `Foreign` otherwise."""
    try:
        own = own_names(net.tensors, rename)
    except KeyError as error:
        raise Foreign(f"it has the unknown tensor {printable(error.args[0])}") from error
    for name, tensor in own.items():
        if classes and LABEL_TABLE.fullmatch(name) and tensor.shape[:1] > (classes,):
            own[name] = tensor.rows(classes)
    try:
        with torch.device("meta"):
            reason = misfit(construct(spec), own)
    except (ValueError, RuntimeError, ZeroDivisionError, UserError) as error:
        raise Foreign(f"no network has these sizes ({' '.join(str(error).split())})") from error
    if reason is not None:
        raise Foreign(f"its tensors don't fit: {reason}")
    return own


def _add_raw_generator(result: Import) -> None:
    """The tensors of G; those of G_ema where it isn't a network of the same kind and size."""
    result.own["G"] = result.own["G_ema"]
    if "G" not in result.networks:
        return
    try:
        plan = plan_generator(result.networks["G"])
        result.own["G"] = _adopt(result.config["G"], result.networks["G"], plan.rename, plan.classes)
    except Foreign as error:
        result.notes.append(f"G isn't the network that G_ema is ({error}); G_ema takes its place")


def _add_discriminator(result: Import, content: Any) -> None:
    """D, where there is one of a known kind; a note otherwise."""
    if "D" not in result.networks:
        result.notes.append("the file has no discriminator: the result makes images, but can't be trained on")
        return
    try:
        plan = plan_discriminator(result.networks["D"], result.generator)
        config = _config(result.path, content, result.generator, plan)
        own = _adopt(config["D"], result.networks["D"], plan.rename, result.generator.classes)
    except Foreign as error:
        result.notes.append(f"D is left out ({error}): the result makes images, but can't be trained on")
        return
    result.discriminator, result.config, result.own["D"] = plan, config, own
    result.notes += [f"D: {note}" for note in plan.notes]
