"""Sparse matrix products and the choice between them: the measured rows of docs/products.md and docs/planner.md."""

from gossamer.bench.matmul import detection, gradients, planning, products, runtime, training, workloads

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
    "explain": planning.explain,
    "regret": planning.regret,
}
