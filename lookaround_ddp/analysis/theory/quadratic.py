"""`analyze quadratic`: the paper's steady-state variances beside the corrected ones and a simulation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookaround_ddp.analysis.output import Numbers, Output, empty_figure
from lookaround_ddp.analysis.theory.noisy_quadratic import Array, Model, MonteCarlo, least_replicas, variance_ratio
from lookaround_ddp.errors import UserError
from lookaround_ddp.tables import print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CURVE = 400  # places of a curve at most


LENGTHS = (1, 2, 5, 10, 20, 40)  # of rounds, at which the figure has simulated points


def analyze_quadratic(options: argparse.Namespace) -> None:
    """Prints the variances, and writes them and a figure of them."""
    _check_quadratic_options(options)
    a = np.array(options.a)
    sigma2 = np.full_like(a, options.sigma2[0]) if len(options.sigma2) == 1 else np.array(options.sigma2)
    model = Model(a, options.gamma, sigma2)
    output = Output(options.out or Path("quadratic"))
    numbers = variances(model, options)
    _print_variances(numbers)
    _draw_quadratic(model, options, numbers, output)
    output.write(numbers)


def variances(model: Model, options: argparse.Namespace) -> Numbers:
    """Returns each method's variances as printed, with the slip mended, corrected, and simulated, by coordinate."""
    k, alpha, d, rho = options.k, options.alpha, options.d, options.rho
    methods: dict[str, Numbers] = {
        "SGD": {"printed": model.printed_sgd(), "mended": model.sgd(), "corrected": model.sgd()},
        "Lookahead": {
            "printed": model.printed_lookahead(k, alpha),
            "mended": model.lookahead(k, alpha),
            "corrected": model.lookahead(k, alpha),
        },
        "Lookaround": {
            "printed": model.printed_lookaround(k, d),
            "mended": model.mended_lookaround(k, d),
            "corrected": model.lookaround(d, rho),
        },
    }
    if options.chains:
        chains = MonteCarlo(model, options.chains, options.seed)
        simulated = chains.sgd(), chains.lookahead(k, alpha), chains.lookaround(k, d, rho)
        for method, (variance, error) in zip(methods.values(), simulated, strict=True):
            method |= {"simulated": variance, "standard_error": error}
    settings = {name: getattr(options, name) for name in ("a", "gamma", "k", "alpha", "d", "rho", "chains", "seed")}
    return {
        "settings": {**settings, "sigma2": model.sigma2.tolist()},
        "decay": model.decay(k).tolist(),
        "least_replicas": least_replicas(alpha),
        "variances": {name: {key: each.tolist() for key, each in method.items()} for name, method in methods.items()},
    }


def _check_quadratic_options(options: argparse.Namespace) -> None:
    for name in ("k", "d"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}: give 1 or more")
    if not 0 < options.alpha <= 1:
        raise UserError(f"--alpha is {options.alpha:g}: it is greater than 0, and at most 1")
    if not 0 <= options.rho <= 1:
        raise UserError(f"--rho is {options.rho:g}: give 0 (independent minibatches) to 1")


def _print_variances(numbers: Numbers) -> None:
    settings = numbers["settings"]
    headings = ["steady state", "a", "printed", "mended", "corrected"]
    headings += ["simulated", "± s.e."] if settings["chains"] else []
    table = [
        [name, f"{a:g}", *(f"{each[place]:.5g}" for each in method.values())]
        for name, method in numbers["variances"].items()
        for place, a in enumerate(settings["a"])
    ]
    print(_variances_title(settings))
    print_table(headings, table)
    d, least, alpha = settings["d"], numbers["least_replicas"], settings["alpha"]
    verdict = "so it does" if d >= least else "so it need not"
    print("printed: the paper's eq. 4 to 6, with sigma^4; mended: with sigma^2 for it; corrected: with the term, too,")
    print("that Lookaround's lacks.")
    print(
        f"With independent noise, d >= (2 - alpha)/alpha = {(2 - alpha) / alpha:.4g} replicas vary less than Lookahead "
        f"for every k and gamma A < 1; d is {d}, {verdict}."
    )


def _variances_title(settings: Numbers) -> str:
    """Says in one line which settings the numbers belong to."""
    a, sigma2 = (", ".join(f"{each:g}" for each in settings[name]) for name in ("a", "sigma2"))
    rest = ", ".join(f"{name} = {settings[name]:g}" for name in ("gamma", "k", "alpha", "d", "rho"))
    return f"noisy quadratic model: a = {a}; sigma^2 = {sigma2}; {rest}"


def _draw_quadratic(model: Model, options: argparse.Namespace, numbers: Numbers, output: Output) -> None:
    figure = empty_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    _draw_variances(left, model, options)
    _draw_ratio(right, options)
    output.draw(figure, _variances_title(numbers["settings"]))


def _draw_variances(axes: Axes, model: Model, options: argparse.Namespace) -> None:
    alpha, d, rho = options.alpha, options.d, options.rho
    ks = np.unique(np.linspace(1, max(LENGTHS[-1], 2 * options.k), CURVE).round().astype(int))

    def curve(value: Any) -> Array:
        return np.array([value(int(k)).sum() for k in ks])

    axes.plot(ks, curve(lambda k: model.sgd()), color="C7", label="SGD")
    axes.plot(ks, curve(lambda k: model.lookahead(k, alpha)), color="C0", label=f"Lookahead, alpha = {alpha:g}")
    axes.plot(ks, curve(lambda k: model.lookaround(d, rho)), color="black", label=f"Lookaround, d = {d}")
    printed = curve(lambda k: model.mended_lookaround(k, d))
    axes.plot(ks, printed, "--", color="C3", label="Lookaround, as printed, slip mended")
    if options.chains:
        few = max(2, options.chains // 10)  # one point in the figure needs less than the table
        chains = MonteCarlo(model, few, options.seed + 1)
        points = [k for k in LENGTHS if k <= ks[-1]]
        label = f"simulated, {few:,} chains each, ± 2 s.e."
        _simulated(axes, points, [chains.sgd() for _ in points], "C7")
        _simulated(axes, points, [chains.lookahead(k, alpha) for k in points], "C0")
        _simulated(axes, points, [chains.lookaround(k, d, rho) for k in points], "black", label)
    axes.axvline(options.k, color="C7", lw=0.8, ls=":")
    what = "steady-state variance" if len(options.a) == 1 else "steady-state variance, summed over coordinates"
    top = 1.45 * float(np.maximum(model.sgd(), model.lookaround(d, rho)).sum())  # with room for the legend above all
    axes.set(xlabel="k, steps in a round", ylabel=what, title=f"variance of phi (dotted: k = {options.k})")
    axes.set_ylim(0, top or None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", ncols=2)


def _simulated(
    axes: Axes, ks: list[int], found: list[tuple[Array, Array]], color: str, label: str | None = None
) -> None:
    """Draws sums over coordinates, which are independent, as points with two standard errors."""
    sums = [variance.sum() for variance, _ in found]
    errors = [2 * float(np.linalg.norm(error)) for _, error in found]
    axes.errorbar(ks, sums, errors, fmt="x", color=color, capsize=3, lw=1, label=label)


def _draw_ratio(axes: Axes, options: argparse.Namespace) -> None:
    alpha, b = options.alpha, np.linspace(0, 1, 201)
    for place, d in enumerate(sorted({2, 3, 5, options.d})):
        axes.plot(b, variance_ratio(b, alpha, d), color=f"C{place}", label=f"d = {d}")
    axes.axhline(1, color="black", lw=0.8)
    axes.set(
        xlabel="B = (1 - gamma a)^k, what a round leaves of a distance",
        ylabel="variance of Lookaround / of Lookahead",
        ylim=(0, None),
        title=f"alpha = {alpha:g}, rho = 0: below 1 for all B if d >= {(2 - alpha) / alpha:.4g}",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
