"""Forward-Forward itself, tensors in and tensors out: layers, labels, goodness. Imports `data` and below."""
