"""`gossamer route`: tokens that choose their layers."""
