"""Models of this process inside other programs' frameworks; each subpackage needs the extra of its name."""
