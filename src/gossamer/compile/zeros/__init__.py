"""Zeros that operators find at run time: where they arise, which products can skip them, and what becomes of those."""
