"""Learners behind one protocol, one heavy library each."""
