"""Pruning: masks, one-shot on ONNX files, and recovery by training.

Import the submodules: :mod:`~blockpunch.pruning.onnx_prune` needs onnx, :mod:`~blockpunch.pruning.torch_prune` and
:mod:`~blockpunch.pruning.recover` need torch.
"""
