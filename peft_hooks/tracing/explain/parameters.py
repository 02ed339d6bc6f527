"""The parameters of functions that are written in C++, and which of them are broadcast."""

from __future__ import annotations

_ARITHMETIC = (
    "add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or",
)  # fmt: skip
BROADCAST = {
    "mse_loss": ("input", "target"),
    "l1_loss": ("input", "target"),
    "smooth_l1_loss": ("input", "target"),
    "huber_loss": ("input", "target"),
    "kl_div": ("input", "target"),
    "soft_margin_loss": ("input", "target"),
    "gaussian_nll_loss": ("input", "target"),
    "triplet_margin_loss": ("anchor", "positive", "negative"),
    "margin_ranking_loss": ("input1", "input2", "target"),
    "pairwise_distance": ("x1", "x2"),
    "cosine_similarity": ("x1", "x2"),
    "where": ("condition", "input", "other"),
    "lerp": ("input", "end", "weight"),
    "masked_fill": ("input", "mask"),
    "masked_fill_": ("input", "mask"),
    "addcmul": ("input", "tensor1", "tensor2"),
    **dict.fromkeys(_ARITHMETIC, ("input", "other")),
    **dict.fromkeys(["add_", "sub_", "mul_", "div_"], ("input", "other")),
}
"""Functions whose arguments are broadcast against each other."""


PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "bilinear": ("input1", "input2", "weight", "bias"),
    "embedding": ("weight", "input"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "conv1d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv3d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
    "bmm": ("input", "mat2"),
    "mm": ("input", "mat2"),
    "mv": ("input", "vec"),
    "dot": ("input", "tensor"),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "cdist": ("x1", "x2"),
    "one_hot": ("tensor", "num_classes"),
    "cat": ("tensors", "dim"),
    "concat": ("tensors", "dim"),
    "stack": ("tensors", "dim"),
    "matmul": ("input", "other"),
    "gather": ("input", "dim", "index"),
    "take_along_dim": ("input", "index", "dim"),
    "index_select": ("input", "dim", "index"),
    "scatter": ("input", "dim", "index", "src"),
    "scatter_": ("input", "dim", "index", "src"),
    "scatter_add": ("input", "dim", "index", "src"),
    "scatter_add_": ("input", "dim", "index", "src"),
    "index_add": ("input", "dim", "index", "source"),
    "index_copy": ("input", "dim", "index", "source"),
    "masked_scatter": ("input", "mask", "source"),
    "masked_scatter_": ("input", "mask", "source"),
    "masked_select": ("input", "mask"),
    **BROADCAST,
}
"""The parameters of functions that are written in C++, in their order; a method's own tensor comes first."""


EQUAL = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits", "poisson_nll_loss"})
"""Losses whose ``input`` and ``target`` must be of one shape."""


BY_INDEX = frozenset((
    "gather", "index_select", "scatter", "scatter_", "scatter_add", "scatter_add_", "index_add", "index_copy",
    "take_along_dim",
))  # fmt: skip
"""Functions that are given an index along a dimension."""
