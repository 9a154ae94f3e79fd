"""Draws how time and memory grow with tokens and with texts, from the rows that compare.py has measured."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's colours, which colour-blind people can tell apart; ours are thick.
STYLES = {
    "actscope cpu": ("#0072b2", "o", 2.6),
    "ONNX Runtime cpu": ("#e69f00", "s", 1.4),
    "transformers cpu": ("#009e73", "^", 1.4),
    "TransformerLens cpu": ("#cc79a7", "v", 1.4),
    "actscope gpu": ("#000000", "D", 2.6),
    "ONNX Runtime webgpu": ("#d55e00", "P", 1.4),
}


def draw(rows, path):
    rows = [row for row in rows if row["part"] == "scaling"]
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    for column, (axis, fixed, at, label) in enumerate(
        [("tokens", "batch", "1", "tokens of one text"), ("batch", "tokens", "64", "texts of 64 tokens")]
    ):
        for line, (field, unit) in enumerate([("ms", "ms a run"), ("peak_mb", "MB, peak of the process")]):
            ax = axes[line][column]
            for who, (colour, marker, width) in STYLES.items():
                points = sorted((int(row[axis]), float(row[field])) for row in rows if row["who"] == who and row[fixed] == at)
                if points:
                    ax.plot(*zip(*points), color=colour, marker=marker, linewidth=width, markersize=6, label=who)
            ax.set_xscale("log", base=2)
            ticks = sorted({int(row[axis]) for row in rows if row[fixed] == at})
            ax.set_xticks(ticks, [str(tick) for tick in ticks])
            if field == "ms":
                ax.set_yscale("log")
                low, high = ax.get_ylim()
                steps = [n * 10**power for power in range(-1, 7) for n in (1, 2, 5)]
                ticks = [step for step in steps if low <= step <= high]
                ax.set_yticks(ticks, [f"{step:g}" if step < 1 else f"{step:,.0f}" for step in ticks])
            else:
                ax.set_ylim(bottom=0)
                ax.yaxis.set_major_formatter("{x:,.0f}")
            ax.minorticks_off()
            ax.set_xlabel(label, fontsize=12)
            ax.set_ylabel(unit, fontsize=12)
            ax.tick_params(labelsize=11)
            ax.grid(color="#dddddd", linewidth=0.7)
    # One that is in the first picture is in all of them.
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    figure.suptitle("gpt2-small's shape, 13 hidden states to the host, f32", fontsize=14)
    figure.savefig(path, dpi=110)
    plt.close(figure)
