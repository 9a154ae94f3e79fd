"""Draws how time and memory grow with tokens and with texts, and how far from the limit runs are, from what compare.py has measured."""
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


def draw_limits(far, tokens, path):
    """Bars of time / limit: of whole runs by (who, taps, tokens), and of one token of generation by who."""
    figure, axes = plt.subplots(1, 2 + bool(tokens), figsize=(6 * (2 + bool(tokens)), 5), layout="constrained")
    for ax, taps, title in zip(axes, ("hidden", "full"), ("a run, 13 hidden states", "a run, everything")):
        who = [name for name in STYLES if any(key[:2] == (name, taps) for key in far)]
        lengths = sorted({key[2] for key in far if key[1] == taps})
        width = 0.8 / max(1, len(who))
        for i, name in enumerate(who):
            points = [(at + (i - (len(who) - 1) / 2) * width, far[name, taps, t]) for at, t in enumerate(lengths) if (name, taps, t) in far]
            bars = ax.bar(*zip(*points), width=width, color=STYLES[name][0], label=name)
            ax.bar_label(bars, fmt="%.2f", fontsize=9)
        ax.set_xticks(range(len(lengths)), [f"{t} tokens" for t in lengths])
        ax.set_title(title, fontsize=12)
        ax.legend(fontsize=10, frameon=False)
    if tokens:
        names = list(tokens)[::-1]
        colours = ["#0072b2" if name.startswith("actscope") else "#999999" for name in names]
        axes[2].bar_label(axes[2].barh(names, [tokens[name] for name in names], color=colours), fmt="%.2f", fontsize=9)
        axes[2].axvline(1, color="black", linewidth=1)
        axes[2].set_title("a token of generation", fontsize=12)
    for ax in axes[:2]:
        ax.axhline(1, color="black", linewidth=1)
        ax.set_ylabel("time / limit", fontsize=11)
    figure.suptitle("gpt2-small's shape, cpu: how far from the limit that the processor's arithmetic or its memory sets", fontsize=14)
    figure.savefig(path, dpi=110)
    plt.close(figure)
