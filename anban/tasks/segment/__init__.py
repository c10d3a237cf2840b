"""Semantic segmentation: one picture in, a class for every pixel out."""

PREFIX = "seg"
