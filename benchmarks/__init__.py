"""What a page, a sample and a record cost, measured; `make bench` runs it."""
