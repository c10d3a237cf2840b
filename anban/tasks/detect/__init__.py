"""Object detection: one picture in, boxes with a class and a score out."""

PREFIX = "det"
