"""`analyze convergence` (the paper's Fig. 2): the best rate of each method by condition number."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lookaround_ddp.analysis.output import Numbers, Output, empty_figure
from lookaround_ddp.analysis.theory.momentum import METHODS, SPECTRA, RoundMatrices, optimum
from lookaround_ddp.errors import UserError
from lookaround_ddp.tables import print_table

KAPPAS = np.geomspace(1e1, 1e7, 25).tolist()


LABELS = {
    "classical momentum": "classical momentum, and Lookaround (its replicas coincide)",
    "Lookahead": "Lookahead, alpha = {alpha:g}",
    "trajectory average": 'trajectory average (the paper\'s matrices for "Lookaround")',
    "optimum": "optimum, for which beta would have to fit kappa",
}


def analyze_convergence(options: argparse.Namespace) -> None:
    """Prints the rates, and writes them and a figure of them."""
    rounds = RoundMatrices(options.k, options.beta, options.alpha)
    kappas = options.kappa or KAPPAS
    if min(kappas) <= 1:
        raise UserError(f"--kappa has {min(kappas):g}: condition numbers are greater than 1")
    if options.eigenvalues < 2:
        raise UserError(f"--eigenvalues is {options.eigenvalues}: give 2 or more")
    output = Output(options.out or Path("convergence"))
    numbers = rates(rounds, kappas, options.spectrum, options.eigenvalues)
    _print_rates(numbers)
    _draw_rates(numbers, output)
    output.write(numbers)


def rates(rounds: RoundMatrices, kappas: list[float], spectrum: str, count: int) -> Numbers:
    """Finds each method's best learning rate at each condition number, and 1 - rate there, computed and simulated."""
    methods: Numbers = {}
    for method in METHODS:
        rows = []
        for kappa in kappas:
            eigenvalues = SPECTRA[spectrum](kappa, count)
            gamma, rate = rounds.best(method, eigenvalues)
            simulated = 1 - rounds.simulated(method, gamma, eigenvalues)
            rows.append({"kappa": kappa, "lr": gamma, "gain": 1 - rate, "simulated_gain": simulated})
        methods[method] = rows
    settings = {"k": rounds.k, "beta": rounds.beta, "alpha": rounds.alpha, "spectrum": spectrum}
    if spectrum != "ends":
        settings["eigenvalues"] = count
    return {
        "settings": settings,
        "gain": "1 - rate; rate: what a step leaves of a distance",
        "methods": methods,
        "optimum": [{"kappa": kappa, "gain": 1 - optimum(kappa)} for kappa in kappas],
    }


def _rates_title(settings: Numbers) -> str:
    spectrum = {
        "ends": "eigenvalues 1/kappa and 1",
        "linear": "{eigenvalues} eigenvalues, evenly from 1/kappa to 1",
        "log": "{eigenvalues} eigenvalues, evenly in their logarithms from 1/kappa to 1",
    }[settings["spectrum"]].format(**settings)
    return f"deterministic quadratic, {spectrum}; k = {settings['k']}, beta = {settings['beta']:g}"


def _print_rates(numbers: Numbers) -> None:
    table = [
        [f"{row[0]['kappa']:.3g}", *(f"{each['gain']:.4g}" for each in row)]
        for row in zip(*numbers["methods"].values(), numbers["optimum"], strict=True)
    ]
    print(_rates_title(numbers["settings"]))
    print_table(["1 - rate, kappa", *METHODS, "optimum"], table, left=(), wrapped=(1, 2, 3))
    rows = [row for method in numbers["methods"].values() for row in method]
    off = max(abs(row["simulated_gain"] / row["gain"] - 1) for row in rows)
    print("Best learning rate of each method and kappa; Lookaround's replicas coincide here: it is classical momentum.")
    print("The optimum, 1 - (sqrt(kappa) - 1)/(sqrt(kappa) + 1), is momentum's where beta fits kappa.")
    print(f"Simulated, step by step, 1 - rate differs by {off:.2g} of itself at most.")


def _draw_rates(numbers: Numbers, output: Output) -> None:
    figure = empty_figure(7.5, 5)
    axes = figure.subplots()
    for method, color in zip(METHODS, ("C7", "C0", "C3"), strict=True):
        rows = numbers["methods"][method]
        kappas, label = [row["kappa"] for row in rows], LABELS[method].format(**numbers["settings"])
        axes.loglog(kappas, [row["gain"] for row in rows], color=color, label=label)
        simulated = [row["simulated_gain"] for row in rows]
        axes.loglog(kappas, simulated, "x", color=color, label="simulated" if color == "C3" else None)
    gains = [row["gain"] for row in numbers["optimum"]]
    axes.loglog(kappas, gains, "--", color="black", lw=1, label=LABELS["optimum"])
    axes.set(xlabel="condition number kappa", ylabel="1 - rate of a step, at the best learning rate")
    axes.set_title("more is faster", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    output.draw(figure, _rates_title(numbers["settings"]))
