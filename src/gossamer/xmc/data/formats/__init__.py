"""Readers and writers of the formats in which data sets of extreme classification are published.

`lines` streams a file; `rows` parses its numbers; `sparse_text`, `text`, `json_lines` and `scipy_npz` are formats.
Every fault of a file is one ValueError that names it, and the line.
"""
