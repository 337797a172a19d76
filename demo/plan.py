"""Which steps of the demo are left to do: plain decisions from what is finished. Nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Command = list[str]  # arguments of the Python that runs the demo


@dataclass(frozen=True)
class Step:
    """A part of the demo. `params` is what its result depends on, besides the results of the steps in `needs`.

    commands: called when the step's turn comes, with True if its run is to be continued. outputs: files without
    which it isn't finished. trains: whether it has a run directory and can be continued.
    """

    name: str
    params: dict[str, Any]
    needs: tuple[str, ...]
    minutes: float  # estimate, for the plan
    commands: Callable[[bool], list[Command]]
    outputs: tuple[Path, ...] = ()
    trains: bool = False


def decide(steps: Sequence[Step], finished: Mapping[str, Mapping], begun: Mapping[str, Mapping],
           can_resume: Callable[[str], bool], exists: Callable[[Path], bool] = Path.exists) -> dict[str, str]:
    """What to do with each step: ``skip``, ``run`` or ``resume`` (continue a training run).

    finished and begun: parameters of steps that were completed, or started and not completed. can_resume: whether
    the run of a training step has a snapshot. A step is redone when its parameters changed, an output is gone, or a
    step that it needs is redone. A run that only has to become longer is resumed; one that is already longer stays.
    """
    actions: dict[str, str] = {}
    for step in steps:
        fresh_inputs = any(actions[need] != "skip" for need in step.needs)
        known = finished.get(step.name)
        if known is not None and not (all(map(exists, step.outputs)) and (can_resume(step.name) or not step.trains)):
            known = None
        before = begun.get(step.name) if known is None else known
        same = before is not None and _without_minutes(before) == _without_minutes(step.params)
        if fresh_inputs or not same or before is None:
            actions[step.name] = "run"
        elif known is not None and known.get("minutes", 0) >= step.params.get("minutes", 0):
            actions[step.name] = "skip"
        else:
            actions[step.name] = "resume" if step.trains and can_resume(step.name) else "run"
    return actions


def _without_minutes(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "minutes"}


def announce(actions: Mapping[str, str], finished: Mapping[str, Mapping], begun: Mapping[str, Mapping],
             minutes: float) -> str:
    """The sentence that says what this call does."""
    todo = [name for name, action in actions.items() if action != "skip"]
    if not finished and not begun:
        return f"Starting afresh: {minutes:g} minutes of training."
    if not todo:
        trained = finished["train"]["minutes"]
        longer = f" (it trained {trained:g} minutes already)" if trained > minutes else ""
        return (f"Everything is finished{longer}; only the report is written anew. More minutes would train on, "
                "--fresh would start over.")
    if actions["train"] == "resume" and "train" in finished:
        return (f"Continuing the run from {finished['train']['minutes']:g} to {minutes:g} minutes; "
                "the steps after it are redone.")
    if todo[0] in begun:
        return f"Continuing at the step that was interrupted: {todo[0]}."
    return f"Continuing with: {', '.join(todo)}."
