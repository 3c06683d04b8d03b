"""Sparse matrix products: the measured rows behind docs/products.md."""

from gossamer.bench.matmul import detection, gradients, products, runtime, training, workloads

SECTIONS = {
    "products": products.rows,
    "break_even": products.break_even,
    "gradients": gradients.rows,
    "detection": detection.rows,
    "row_axis": runtime.row_axis,
    "column_axis": runtime.column_axis,
    "experts": workloads.expert_rows,
    "workloads": workloads.rows,
    "training": training.rows,
}
