"""The set-up program behind `make setup`: standard library only."""
