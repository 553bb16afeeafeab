"""What makes a release and the documentation's pages; not part of the package, and not in its wheel."""
