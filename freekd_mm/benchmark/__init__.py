"""Compares methods on one student, one teacher and one data set: same data order, schedule and seeds."""
