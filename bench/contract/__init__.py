"""The parts of the contract; `bench.api` offers them under one name."""
