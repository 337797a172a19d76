"""The curves of the report: losses, scores, what the latents hold, speed, and latent diffusion."""

from __future__ import annotations

from training.report_data import RunFiles
from training.report_parts import Line, chart, missing, section


def curves_section(run: RunFiles, control: RunFiles | None, latent: RunFiles | None) -> str:
    """Charts of the run, with the control's retrieval beside its own, and of the latent diffusion model."""
    charts = "".join([*adversarial(run), *latents(run, control), speed(run)])
    body = f'<div class="charts">{charts}</div>' if charts else missing("The run has not finished its first tick yet.")
    if latent is None:
        body += missing("No latent diffusion run was given (--ldm RUN_DIR).")
    else:
        body += "<h3>Latent diffusion</h3>" + diffusion(latent)
    return section("curves", "Curves", body, "One point per tick; the number beside a name is its newest value.")


def adversarial(run: RunFiles) -> list[str]:
    """Losses and scores."""
    x = "thousand images"
    return [
        chart("Losses", [Line("G", run.curve("Loss/G/loss")), Line("D on reals", run.curve("Loss/D/real")),
                         Line("D on fakes", run.curve("Loss/D/fake"))], x, "Hinge losses."),
        chart("Scores of the discriminator",
              [Line("reals", run.curve("Loss/scores/real")), Line("fakes", run.curve("Loss/scores/fake"))], x,
              "A gap that keeps growing means that D is winning."),
        chart("Information term", [Line("1 − cosine", run.curve("Loss/G/information"))], x,
              "Between f of the sample and f of its image; 0 would say everything that h says."),
    ]


def latents(run: RunFiles, control: RunFiles | None) -> list[str]:
    """Diagnostics of f and h over a fixed subset of the training images."""
    x = "thousand images"
    ratio = _share_of_chance(run)
    lines = [Line("this run", ratio)]
    if control is not None:
        lines.append(Line("control, f constant", _share_of_chance(control)))
    if ratio:
        end = max(point[0] for line in lines for point in line.points)
        lines.append(Line("chance", [(0.0, 1.0), (end, 1.0)], reference=True))
    return [
        chart("Retrieval rank / chance", lines, x,
              "Median rank at which x_i is found from G(z, h), in Lite2 features. Below 1: h is used."),
        chart("Posterior perplexity", [Line("images per h", run.curve("Latent/perplexity"))], x,
              "How many images share an h (Eq. 4). 1: each has its own; all of them: h says nothing."),
        chart("Effective rank of f", [Line("rank", run.curve("Latent/effective_rank"))], x,
              "Directions that the latents really use."),
        chart("Mean cosine of f", [Line("cosine", run.curve("Latent/mean_cosine"))], x,
              "Between latents of different images; 1 is collapse."),
    ]


def _share_of_chance(run: RunFiles) -> list[tuple[float, float]]:
    chance = dict(run.curve("Latent/retrieval_chance"))
    return [(x, y / chance[x]) for x, y in run.curve("Latent/retrieval_rank") if chance.get(x)]


def speed(run: RunFiles) -> str:
    """Images per second."""
    return chart("Speed", [Line("images per second", run.curve("Timing/img_per_sec"))], "thousand images")


def diffusion(latent: RunFiles) -> str:
    """Noise errors of the latent diffusion model, with the best that a Gaussian could do."""
    made = chart(
        "Error of the predicted noise",
        [Line("training", latent.curve("Loss/train")), Line("held out", latent.curve("Loss/heldout")),
         Line("Gaussian guess", latent.curve("Loss/gaussian_guess"), reference=True)], "thousand latents",
        "Mean squared error (Eq. 7). The guess knows only mean and covariance of the latents: below it, the model has "
        "learned more than a Gaussian.")
    best, guess = latent.state.get("best", {}).get("loss"), latent.state.get("guess")
    text = ""
    if best is not None and guess is not None:
        text = (f"<p>Best held-out error {best:.4f}, Gaussian guess {guess:.4f}: "
                f"{'the model beats it' if best < guess else 'the model does not beat it'}.</p>")
    return (f'<div class="charts">{made}</div>' if made else missing("It has not finished its first tick yet.")) + text
