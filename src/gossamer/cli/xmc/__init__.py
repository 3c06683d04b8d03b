"""`gossamer xmc`: extreme classification. Each command imports what it needs when it runs."""
