"""Draws docs/pictures/family.png, the methods that are one formula."""

import pathlib

from matplotlib import pyplot as plt

COLUMNS = (
    "M = I\nno lookahead",
    "M measured before\nby training on each task",
    "M = A\none step ahead",
)
ROWS = (
    ("even", "all tasks count"),
    ("the losses", "larger ones more"),
    ("softmax", "mostly the worst"),
    ("one-hot", "the worst alone"),
)
METHODS = {
    (0, 2): "DoGE\nAioli",
    (1, 0): "group DRO, AFL\nBaselined-DRO, DoReMi:\nlosses above a reference",
    (1, 1): "Skill-It",
    (2, 0): "TERM\nregularised DRO",
    (2, 2): "smooth L-DRO:\nlosses after the step\nGRAPE:\nrates of improvement",
    (3, 0): "interpolated",
    (3, 2): "L-DRO:\nthe worst after the step",
}
OURS = {(2, 2), (3, 2)}


def main():
    """Draws it."""
    plt.rcParams["font.size"] = 10
    figure, axes = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
    for row in range(len(ROWS)):
        for column in range(len(COLUMNS)):
            names = METHODS.get((row, column), "")
            colour = "#cfe3f5" if (row, column) in OURS else "#f1f1ee" if names else "white"
            axes.add_patch(
                plt.Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="#9a9a94")
            )
            axes.text(column + 0.5, row + 0.5, names, ha="center", va="center")
    axes.set(xlim=(0, len(COLUMNS)), ylim=(len(ROWS), 0))
    axes.set_xticks([i + 0.5 for i in range(len(COLUMNS))], COLUMNS)
    axes.set_yticks([i + 0.5 for i in range(len(ROWS))], [f"v: {a}\n{b}" for a, b in ROWS])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title("log w ← log w + rate · Mᵀv", fontsize=13, pad=14)
    path = pathlib.Path(__file__).parents[1] / "docs" / "pictures" / "family.png"
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
