"""`gossamer tour`: seven cards, each a real run of one system beside its dense baseline, and a page of them."""
