"""Screens: a reading in, text out. Pure, so that a test compares them letter by letter."""
