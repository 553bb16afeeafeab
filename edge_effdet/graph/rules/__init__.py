"""The rewriting rules of the graph optimizer, one a file, each with its algebra."""
