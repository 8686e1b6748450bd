"""Hooks that are not a method's, and what makes a training reliable."""
