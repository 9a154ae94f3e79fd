"""See inside GPT-2: every activation by name, by token, on your own GPU, with numbers you can trust.

>>> import actscope
>>> model = actscope.load("demo")
>>> cache = model.run("The cat sat on the mat.", hooks=["resid_post.*", "pattern.2"])
>>> cache["pattern", 2].shape
(1, 5, 7, 7)
"""

from actscope._attribute import Attribution, Edge, Edges, Gradients
from actscope._cache import Cache
from actscope._edits import Edit
from actscope._generate import Generated, Generation, NewToken, Score, Scores, Stream
from actscope._heads import Circuit, Heads
from actscope._model import Model, devices, load
from actscope._native import Error, __version__
from actscope._notebook import Activations, ActivationExtractor, plot_activation_heatmap
from actscope._show import Attention, Heatmap, Lens, Prediction, Report, Tokens, Verification
from actscope._sweep import Sweep
from actscope._weights import Weights

__all__ = [
    "ActivationExtractor",
    "Activations",
    "Attention",
    "Attribution",
    "Cache",
    "Circuit",
    "Edge",
    "Edges",
    "Edit",
    "Error",
    "Generated",
    "Generation",
    "Gradients",
    "Heads",
    "Heatmap",
    "Lens",
    "Model",
    "NewToken",
    "Prediction",
    "Report",
    "Score",
    "Scores",
    "Stream",
    "Sweep",
    "Tokens",
    "Verification",
    "Weights",
    "__version__",
    "devices",
    "load",
    "plot_activation_heatmap",
]
