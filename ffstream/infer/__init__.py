"""Inference with committed layers, streamed or as one module. Imports `plan` and below."""
