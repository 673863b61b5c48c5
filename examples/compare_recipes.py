"""Error against depth of two recipes and of one changed setting, from the library. Needs matplotlib for the picture."""

from pathlib import Path

import ffstream as ff

SETTINGS = {
    "inject": {},
    "inject, logistic": {"objective.name": "logistic", "objective.scale": 10.0},
    "hinton": {"recipe": "hinton"},
}

curves = {}
for name, settings in SETTINGS.items():
    recipe = settings.get("recipe", "inject")
    config = ff.Config(recipe=recipe, layers=6, width=200, epochs=5).override(settings)
    run = ff.train(config, Path("runs/compare") / name.replace(", ", "-"), resume=True)
    curves[name] = [100 * layer.validation_error_to_here for layer in run.layers]
    print(f"{name:18}", "  ".join(f"{error:5.2f} %" for error in curves[name]))

try:
    import matplotlib.pyplot as plt
except ImportError:
    print("pip install 'ffstream[plot]' for the picture")
else:
    for name, errors in curves.items():
        plt.plot(range(1, len(errors) + 1), errors, marker="o", label=name)
    plt.xlabel("layers")
    plt.ylabel("validation error (%)")
    plt.legend()
    plt.savefig("runs/compare/error-by-depth.png", dpi=120)
    print("picture in runs/compare/error-by-depth.png")
